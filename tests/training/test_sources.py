import os
import pickle
import resource
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vdvae_codec.errors import TrainingError
from vdvae_codec.images.files import write_image
from vdvae_codec.training.data import Images
from vdvae_codec.training.sources import arrays, decoded, open_images


@pytest.fixture(scope="session")
def crops(photo: np.ndarray) -> np.ndarray:
    """Twelve crops (12, 32, 32, 3) uint8 of the photograph."""
    corners = [(y, x) for y in (0, 40, 80) for x in (0, 40, 80, 120)]
    return np.stack([photo[y : y + 32, x : x + 32] for y, x in corners])


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where no folder is yet."""
    return tmp_path / "deep" / "cache"


def planes(images: np.ndarray) -> np.ndarray:
    """Rows (N, 3 H W) uint8, plane after plane."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def png(pixels: np.ndarray) -> bytes:
    return write_image(pixels, {}, ".png")


def jpeg(pixels: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def check(images: Images, names: list[str], pixels: Any) -> None:
    """That a set is exactly this."""
    assert list(images.names) == names
    assert images.sizes.dtype == np.int64 and images.sizes.tolist() == [list(p.shape[:2]) for p in pixels]
    for n, expected in enumerate(pixels):
        assert images[n].dtype == np.uint8 and np.array_equal(images[n], expected)


def numbered(file: str, count: int, digits: int) -> list[str]:
    return [f"{file}/{n:0{digits}d}" for n in range(count)]


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text and bytes as Python 2 wrote its strings, and NumPy under the name that it had."""

    def save_string(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        head = b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + len(data).to_bytes(4, "little")
        self.write(head + data)
        self.memoize(value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch = {  # noqa: RUF012
        **pickle._Pickler.dispatch, str: save_string, bytes: save_string,  # type: ignore[attr-defined]
        type: save_global, type(len): save_global, type(write_tar): save_global,
    }  # fmt: skip


def python2(value: object) -> bytes:
    out = BytesIO()
    Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue()


def batch(rows: np.ndarray) -> dict[bytes, object]:
    """As CIFAR-10 has it."""
    labels, files = list(range(len(rows))), [b"cat_s_%06d.png" % n for n in range(len(rows))]
    return {b"batch_label": b"training batch 1 of 5", b"labels": labels, b"data": rows, b"filenames": files}


# --- folders of images ---


def test_folder(photo: np.ndarray, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.png").write_bytes(png(photo))
    (folder / "sub" / "grey.png").write_bytes(png(photo[:50, :, :1]))
    (folder / "sub" / "a.bmp").write_bytes(write_image(photo[:, :33], {}, ".bmp"))
    (folder / "small.png").write_bytes(png(photo[:31]))
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "short.png").write_bytes(png(photo)[:5000])
    (folder / "notes.txt").write_text("not an image")
    images = open_images(folder, 32, cache)
    check(images, ["b.png", "sub/a.bmp", "sub/grey.png"], [photo, photo[:, :33], np.repeat(photo[:50, :, :1], 3, 2)])
    for name in ("small.png", "broken.png", "short.png"):
        assert caplog.text.count(name) == 1
    with pytest.raises(TrainingError, match=r"photos: no image of at least 121x121 pixels found$"):
        open_images(folder, 121, cache)
    assert len(list(cache.iterdir())) == 2  # pixels and index of the first


def test_one_image_file(photo_png: Path, photo: np.ndarray, cache: Path) -> None:
    check(open_images(photo_png, 32, cache), ["photo.png"], [photo])


def test_many_skipped_are_counted(photo: np.ndarray, tmp_path: Path, cache: Path, caplog: Any) -> None:
    write_tar(tmp_path / "a.tar", {f"{n}.png": png(photo[: 32 - (n > 0)]) for n in range(61)})
    assert len(open_images(tmp_path / "a.tar", 32, cache).names) == 1
    assert len(caplog.records) == 51 and caplog.messages[-1] == "skipped 10 more"


# --- batches ---


@pytest.mark.parametrize("write", [
    python2,
    lambda b: pickle.dumps(b, 2),
    lambda b: pickle.dumps(b, 4),
    lambda b: pickle.dumps(b, 5),
    lambda b: pickle.dumps({key.decode(): value for key, value in b.items()}, 2),
    lambda b: pickle.dumps({key.decode(): value for key, value in b.items()}, 5),
    lambda b: python2({**b, b"data": np.asfortranarray(b[b"data"])}),
    lambda b: pickle.dumps({**b, b"data": np.asfortranarray(b[b"data"])}, 5),
    lambda b: python2({b"data": b[b"data"], b"labels": b[b"labels"], b"mean": np.ones(3072), b"x": np.float32(1)}),
])  # fmt: skip
def test_pickled_batches(write: Callable[[Any], bytes], crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for n in (1, 2):
        (folder / f"data_batch_{n}").write_bytes(write(batch(planes(crops[4 * n - 4 : 4 * n]))))
    (folder / "test_batch").write_bytes(write(batch(planes(crops[8:]))))
    (folder / "batches.meta").write_bytes(python2({b"label_names": [b"cat"]}))
    (folder / "readme.html").write_text("<html>")
    names = numbered("data_batch_1", 4, 1) + numbered("data_batch_2", 4, 1)
    check(open_images(folder, 32, cache), names, crops[:8])
    check(open_images(folder / "data_batch_2", 32, cache), names[4:], crops[4:8])
    check(open_images(folder / "test_batch", 32, cache), numbered("test_batch", 4, 1), crops[8:])
    with pytest.raises(TrainingError, match=r"batches\.meta: the pickle holds no array of uint8 called data$"):
        open_images(folder / "batches.meta", 32, cache)


def test_the_pickles_look_like_the_originals(crops: np.ndarray) -> None:
    data = python2(batch(planes(crops)))
    assert data.startswith(b"\x80\x02}") and b"U\x04data" in data and b"cnumpy.core.multiarray\n_reconstruct\n" in data
    assert b"_codecs" not in data and b"_core" not in data


class Malicious:
    def __init__(self, function: Callable[..., Any], *arguments: object):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_malicious_pickle_is_not_executed(protocol: int, crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    file, trap = tmp_path / "data_batch_1", tmp_path / "executed"
    for call in (Malicious(os.mkdir, trap.as_posix()), Malicious(eval, f"__import__('os').mkdir({str(trap)!r})")):
        file.write_bytes(pickle.dumps({**batch(planes(crops)), b"labels": call}, protocol))
        with pytest.raises(TrainingError, match=r"data_batch_1: refused: a pickle that calls \S+\.(mkdir|eval) holds"):
            open_images(file, 32, cache)
    assert not trap.exists() and not list(cache.glob("*"))


@pytest.mark.parametrize("data", [
    b"", b"text", b"\x80\x02", b"\x80\x02.", pickle.dumps([1]), pickle.dumps({"data": [1]}),
    pickle.dumps({"data": np.zeros((2, 7), np.uint8)}), pickle.dumps({"data": np.zeros((2, 3072))}),
    python2({b"data": np.zeros((2, 3072), np.uint8)})[:4000],
    pickle.dumps({"data": np.zeros((2, 4, 4, 3), np.uint8).transpose(2, 0, 1, 3)}, 5),
])  # fmt: skip
def test_damaged_pickles(data: bytes, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "batch").write_bytes(data)
    with pytest.raises(TrainingError, match=r"batch: .+") as caught:
        open_images(tmp_path / "batch", 1, cache)
    assert "\n" not in str(caught.value) and not list(cache.glob("*"))


def test_binary_batches(crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = np.concatenate([np.arange(12, dtype=np.uint8)[:, None], planes(crops)], 1)
    for n in range(2):
        (folder / f"data_batch_{n + 1}.bin").write_bytes(records[4 * n : 4 * n + 4].tobytes())
    (folder / "test_batch.bin").write_bytes(records[8:].tobytes())
    (folder / "batches.meta.txt").write_text("cat\n")
    names = numbered("data_batch_1.bin", 4, 1) + numbered("data_batch_2.bin", 4, 1)
    check(open_images(folder, 32, cache), names, crops[:8])
    check(open_images(folder / "test_batch.bin", 32, cache), numbered("test_batch.bin", 4, 1), crops[8:])
    (folder / "data_batch_2.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(TrainingError, match=r"data_batch_2\.bin: not CIFAR-10's records of 3073 bytes"):
        open_images(folder, 32, cache)


@pytest.mark.parametrize("side", [32, 64])
def test_downsampled_imagenet(side: int, photo: np.ndarray, tmp_path: Path, cache: Path) -> None:
    crops = np.stack([photo[y : y + side, x : x + side] for y in (0, 40) for x in range(0, 96, 16)])
    folder = tmp_path / f"imagenet{side}"
    folder.mkdir()
    for n in range(1, 13):  # twelve: 10 comes after 9
        labels, mean = np.array([n]), crops.mean(0).ravel()
        np.savez(folder / f"train_data_batch_{n}.npz", data=planes(crops[n - 1 : n]), labels=labels, mean=mean)
    np.savez(folder / "val_data.npz", data=planes(crops[:2]), labels=np.array([1, 2]))
    names = [f"train_data_batch_{n}.npz/0" for n in range(1, 13)]
    check(open_images(folder, side, cache), names, crops)
    check(open_images(folder / "val_data.npz", side, cache), numbered("val_data.npz", 2, 1), crops[:2])


def test_a_batch_in_two_formats_is_taken_once(crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "train_data_batch_1").write_bytes(python2({"data": planes(crops)}))
    np.savez(tmp_path / "train_data_batch_1.npz", data=planes(crops))
    check(open_images(tmp_path, 32, cache), numbered("train_data_batch_1.npz", 12, 2), crops)


# --- arrays ---


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "NHWC": lambda a: a,
    "N3HW": lambda a: a.transpose(0, 3, 1, 2),
    "rows": planes,
    "NHW": lambda a: a[..., 1],
    "NHW1": lambda a: a[..., 1:2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("write", [np.save, np.savez, np.savez_compressed])
@pytest.mark.parametrize("block", [1, 5 * 32 * 32 * 3, 2**24])
def test_arrays(
    layout: str, write: Callable[[Path, np.ndarray], None], block: int, crops: np.ndarray, tmp_path: Path, cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(arrays, "BLOCK", block)
    file = tmp_path / ("a.npy" if write is np.save else "a.npz")
    write(file, np.ascontiguousarray(LAYOUTS[layout](crops)))
    grey = np.repeat(crops[..., 1:2], 3, 3)
    check(open_images(file, 32, cache), numbered(file.name, 12, 2), grey if layout in ("NHW", "NHW1") else crops)


def test_the_array_of_an_npz(crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    file, names = tmp_path / "set.npz", numbered("set.npz", 4, 1)
    labels = {"y_train": np.zeros(4, np.uint8), "floats": crops / 255}
    np.savez(file, data=crops[4:8], x_train=crops[:4], **labels)
    check(open_images(file, 32, cache), names, crops[:4])
    check(open_images(tmp_path / "set.npz:data", 32, cache), names, crops[4:8])
    check(open_images(file, 32, cache), names, crops[:4])  # its cache is another
    np.savez(file, photographs=crops[4:8], x_train=crops[:4] / 255, **labels)
    check(open_images(file, 32, cache), names, crops[4:8])
    np.savez(file, **{"a/b": crops[4:8]}, other=crops[:4], **labels)
    check(open_images(tmp_path / "set.npz:a/b", 32, cache), names, crops[4:8])
    with pytest.raises(TrainingError, match=r"several arrays of .*a/b: \(4, 32, 32, 3\) uint8, .*FILE.npz:KEY"):
        open_images(file, 32, cache)
    with pytest.raises(TrainingError, match=r"set\.npz: floats is no array of images in uint8 \(.*\) float64\)"):
        open_images(tmp_path / "set.npz:floats", 32, cache)
    np.savez(file, **labels, objects=np.array([{}], object))
    with pytest.raises(TrainingError, match=r"npz: no array of .*y_train: \(4,\) uint8, .*objects: \(1,\) object\)$"):
        open_images(file, 32, cache)


def test_arrays_that_are_not_images(crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.npy"
    for array in (crops.astype(np.float32), crops[..., :2], crops[0, 0, 0], np.array({}, object), planes(crops)[:, 1:]):
        np.save(file, array)
        with pytest.raises(TrainingError, match=r"a\.npy: expected images in uint8, got \("):
            open_images(file, 32, cache)
    np.save(file, np.asfortranarray(crops))
    with pytest.raises(TrainingError, match="Fortran"):
        open_images(file, 32, cache)
    np.save(file, crops)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"a\.npy: ends after 11 of 12 images$"):
        open_images(file, 32, cache)
    np.save(file, crops[:0])
    with pytest.raises(TrainingError, match="no image of at least"):
        open_images(file, 32, cache)
    np.savez(tmp_path / "a.npz", crops)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(TrainingError, match=r"a\.npz: .*not a zip"):
        open_images(tmp_path / "a.npz", 32, cache)


def test_small_images_of_an_array_are_named_once(
    crops: np.ndarray, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "a.npy", crops)
    with pytest.raises(TrainingError, match="no image of at least 33x33"):
        open_images(tmp_path / "a.npy", 33, cache)
    assert caplog.messages == [f"skipped {tmp_path}/a.npy: 32x32, smaller than 33 pixels"]


# --- shards ---


def test_tar_of_pngs(crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    """The older ImageNet32."""
    file = tmp_path / "train_32x32.tar"
    (tmp_path / "train_32x32").mkdir()
    for n, crop in enumerate(crops, 1):
        (tmp_path / "train_32x32" / f"{n:07d}.png").write_bytes(png(crop))
    with tarfile.open(file, "w") as tar:
        tar.add(tmp_path / "train_32x32", "train_32x32")
    with tarfile.open(file) as tar:
        names = [m.name for m in tar if m.isreg()]
    order = [int(name[-11:-4]) - 1 for name in names]
    check(open_images(file, 32, cache), [f"train_32x32.tar/{name}" for name in names], crops[order])
    assert [p.suffix for p in cache.iterdir()] == [".npz"]


@pytest.fixture
def shards(photo: np.ndarray, crops: np.ndarray, tmp_path: Path) -> Path:
    """A folder of two shards as WebDataset has them, with a broken, a small and an oddly named member."""
    folder = tmp_path / "shards"
    folder.mkdir()
    long = "n" * 120 + ".é.png"
    write_tar(folder / "set-000000.tar", {
        "0.cls": b"3", "0.png": png(photo), "0.json": b"{}", "1.jpg": jpeg(photo[:50]), "1.cls": b"5",
        "2.jpg": b"\xff\xd8\xff no image", "2.txt": b"a caption", long: png(crops[0]), "3.png": png(crops[0][:20]),
    })  # fmt: skip
    write_tar(folder / "set-000001.tar", {"4.jpg": jpeg(photo[:, :60]), "5.png": png(photo[..., :1])})
    (folder / "set-000000.tar.md5").write_text("0")
    (folder / "stray.png").write_bytes(png(photo))
    return folder


def test_shards(
    shards: Path, photo: np.ndarray, crops: np.ndarray, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["0/0.png", "0/1.jpg", f"0/{'n' * 120}.é.png", "1/4.jpg", "1/5.png"]
    names = [f"set-00000{name[0]}.tar{name[1:]}" for name in names]
    jpegs = [np.asarray(Image.open(BytesIO(jpeg(p)))) for p in (photo[:50], photo[:, :60])]
    pixels = [photo, jpegs[0], crops[0], jpegs[1], np.repeat(photo[..., :1], 3, 2)]
    check(open_images(shards, 32, cache), names, pixels)
    assert "set-000000.tar/2.jpg: " in caplog.text and "3.png: 32x20, smaller than 32 pixels" in caplog.text
    assert len(caplog.records) == 2
    check(open_images(shards, 32, cache), names, pixels)  # from the index
    assert len(caplog.records) == 2
    check(open_images(shards / "set-000001.tar", 32, cache), names[3:], pixels[3:])


@pytest.mark.parametrize("mode, suffix", [("w:gz", "gz"), ("w:bz2", "bz2"), ("w:xz", "xz")])
def test_compressed_tars_are_refused(mode: str, suffix: str, crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    for name in (f"a.tar.{suffix}", "a.tar"):
        write_tar(tmp_path / name, {"0.png": png(crops[0])}, mode)
        with pytest.raises(TrainingError, match=rf"{name}: not an uncompressed tar; decompress it"):
            open_images(tmp_path / name, 32, cache)


def test_a_truncated_shard_is_refused(shards: Path, cache: Path) -> None:
    file = shards / "set-000001.tar"
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(TrainingError, match=r"set-000001\.tar: unexpected end of data"):
        open_images(shards, 32, cache)


def test_damaged_pixels_come_out_black(
    photo: np.ndarray, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(photo)[:9000], "1.png": png(photo)})
    images = open_images(tmp_path / "a.tar", 32, cache)
    check(images, ["a.tar/0.png", "a.tar/1.png"], [np.zeros_like(photo), photo])
    assert "black instead of a.tar/0.png: " in caplog.text
    (tmp_path / "a.tar").unlink()
    with pytest.raises(TrainingError, match=r"a\.tar: No such file"):
        images[1]


def test_large_images_in_shards(shards: Path, photo: np.ndarray, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limits, which are the program's own, do not count."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert np.array_equal(open_images(shards, 32, cache)[0], photo)
    assert Image.MAX_IMAGE_PIXELS == 1000


# --- both ---


@pytest.mark.parametrize("kind", ["decoded", "shards"])
def test_threads_read_at_once(kind: str, shards: Path, cache: Path) -> None:
    if kind == "decoded":
        for tar in shards.glob("*.tar"):
            with tarfile.open(tar) as opened:
                opened.extractall(shards, filter="data")
            tar.unlink()
    images = open_images(shards, 32, cache)
    alone = [images[n] for n in range(len(images.names))]
    order = np.random.default_rng(0).integers(len(alone), size=400)
    with ThreadPoolExecutor(8) as pool:
        for n, pixels in zip(order, pool.map(images.__getitem__, map(int, order))):
            assert np.array_equal(pixels, alone[n])


def test_the_cache_is_used_again(
    crops: np.ndarray, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for n, crop in enumerate(crops):
        (folder / f"{n:02d}.png").write_bytes(png(crop))
    names = [f"{n:02d}.png" for n in range(12)]
    open_images(folder, 32, cache)
    before = {p: p.stat() for p in cache.iterdir()}
    assert sorted(p.suffix for p in before) == [".npz", ".pixels"]
    check(open_images(folder, 32, cache), names, crops)
    monkeypatch.chdir(tmp_path)
    check(open_images(Path("images"), 32, cache), names, crops)
    assert {p: p.stat() for p in cache.iterdir()} == before
    for damaged in before:  # is made anew
        damaged.write_bytes(b"") if damaged.suffix == ".npz" else damaged.unlink()
        check(open_images(folder, 32, cache), names, crops)
    before = {p: p.stat() for p in cache.iterdir()}
    old = open_images(folder, 32, cache)
    (folder / "00.png").write_bytes(png(crops[0, ::-1]))
    (folder / "11.png").unlink()
    check(open_images(folder, 32, cache), names[:11], [crops[0, ::-1], *crops[1:11]])
    assert len(list(cache.iterdir())) == 2 and not before.keys() & set(cache.iterdir())  # the old state's are gone
    check(old, names, crops)  # but a training that has them goes on
    open_images(folder, 16, cache)
    assert len(list(cache.iterdir())) == 4


def test_a_changed_shard_is_indexed_anew(shards: Path, photo: np.ndarray, cache: Path) -> None:
    open_images(shards, 32, cache)
    write_tar(shards / "set-000001.tar", {"6.png": png(photo[::-1])})
    images = open_images(shards, 32, cache)
    assert images.names[3:] == ["set-000001.tar/6.png"] and np.array_equal(images[3], photo[::-1])
    assert len(list(cache.iterdir())) == 1


def test_an_interruption_leaves_nothing(
    crops: np.ndarray, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(png(crops[n]))
    read, seen = decoded.read_rgb, []

    def interrupted(path: Path) -> np.ndarray:
        seen.append([p.suffix for p in cache.iterdir()])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(decoded, "read_rgb", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_images(tmp_path, 32, cache)
    assert seen == [[".tmp"]] * 3 and not list(cache.iterdir())


def test_a_full_disk_is_one_line(crops: np.ndarray, tmp_path: Path, cache: Path) -> None:
    np.save(tmp_path / "a.npy", crops)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=rf"^{cache}: cannot keep the images there \(File too large\)$"):
            open_images(tmp_path / "a.npy", 32, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be(crops: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", crops)
    with pytest.raises(TrainingError, match=r"a\.npy/cache: cannot keep the images there \(Not a directory\)$"):
        open_images(tmp_path / "a.npy", 32, tmp_path / "a.npy" / "cache")


def test_nothing_there(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(TrainingError, match=r"absent: no such file or folder$"):
        open_images(tmp_path / "absent", 32, cache)
    with pytest.raises(TrainingError, match=r"absent\.npz: no such file or folder$"):
        open_images(tmp_path / "absent.npz:x", 32, cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"empty: no image of at least 32x32 pixels found$"):
        open_images(tmp_path / "empty", 32, cache)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(TrainingError, match=r"a\.csv: neither images, arrays, batches nor a tar of images$"):
        open_images(tmp_path / "a.csv", 32, cache)
    write_tar(tmp_path / "a.tar", {"0.txt": b"text"})
    with pytest.raises(TrainingError, match=r"a\.tar: no image of at least 32x32 pixels found$"):
        open_images(tmp_path / "a.tar", 32, cache)
    assert not list(cache.glob("*"))


def test_progress_is_silent_without_a_terminal(
    photo_png: Path, cache: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    open_images(photo_png, 32, cache)
    assert capsys.readouterr() == ("", "") and not caplog.records
