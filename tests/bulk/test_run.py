"""Runs over many images in this process: what they read, what they write, and what a second run does."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tars import crops, pixels_in, shard

import vdvae_codec
from vdvae_codec.bulk.inputs import Limit
from vdvae_codec.bulk.jobs import Compress, Decompress, Score
from vdvae_codec.bulk.run import run
from vdvae_codec.errors import VdvaeCodecError
from vdvae_codec.images.files import read_picture

FEW = Limit(5, 2**20)


@pytest.fixture
def compress(tiny_folder: Path) -> Compress:
    return Compress(str(tiny_folder), "cpu", fallback=False)


@pytest.fixture
def shards(photo: np.ndarray, tmp_path: Path) -> Path:
    """Two shards of 12 images."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for n in range(2):
        (folder / f"s{n}.tar").write_bytes(shard(crops(photo, 12, 12 * n)))
    return folder


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_shards_to_archives_and_back(
    shards: Path, photo: np.ndarray, compress: Compress, tiny_folder: Path, tmp_path: Path
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    done = run(compress, [shards], out, part=FEW)
    assert (done.images, done.parts, done.kept, done.errors) == (24, 6, 0, [])
    assert sorted(p.name for p in out.glob("*.vdz")) == [f"s{s}-0000{n}.vdz" for s in range(2) for n in range(3)]
    assert done.output_bytes == sum(p.stat().st_size for p in out.glob("*.vdz"))
    for row in rows(out):
        with vdvae_codec.open_archive(out / str(row["part"]), model=str(tiny_folder)) as archive:
            found = archive.reader.segments[row["segment"]]  # type: ignore[call-overload]
            assert found.start == row["offset"] and row["name"] in archive.names
            assert 0 < row["bpd"] == 8 * row["bytes"] / (24 * 32 * 3)  # type: ignore[operator]
    assert run(Decompress(str(tiny_folder), "cpu"), [out], back).images == 24
    images = pixels_in(p.read_bytes() for p in back.glob("*.tar"))
    originals = crops(photo, 24)
    assert images.keys() == originals.keys()
    for name, data in originals.items():
        assert np.array_equal(images[name], read_picture(data, name).pixels)  # type: ignore[arg-type]


def test_a_second_run_does_the_rest(shards: Path, compress: Compress, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(compress, [shards], out, part=FEW)
    whole = {path: path.read_bytes() for path in out.iterdir()}
    missing, damaged, undescribed = out / "s0-00001.vdz", out / "s1-00000.vdz", out / "s1-00002.jsonl"
    missing.unlink()
    damaged.write_bytes(whole[damaged][:-1])
    undescribed.unlink()
    for path in out.iterdir():
        os.utime(path, (1, 1))
    assert run(compress, [shards], out, part=FEW).kept == 3
    assert {path: path.read_bytes() for path in out.iterdir()} == whole
    anew = {path.stem for path in out.iterdir() if path.stat().st_mtime != 1}
    assert anew == {"s0-00001", "s1-00000", "s1-00002", "manifest"}
    again = Compress(compress.model, "cpu", fallback=False, segment=2)
    assert run(again, [shards], out, part=FEW).kept == 0  # other bytes are wanted


def test_a_changed_input_is_done_again(
    shards: Path, photo: np.ndarray, compress: Compress, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(compress, [shards], out, part=FEW)
    (shards / "s1.tar").write_bytes(shard(crops(photo, 13, 30)))
    (shards / "s2.tar").write_bytes(shard(crops(photo, 2)))
    done = run(compress, [shards], out, part=FEW)
    assert (done.kept, done.parts, done.images) == (3, 7, 27)


def test_folders_patterns_and_columns_are_the_same_images(
    photo: np.ndarray, compress: Compress, tiny_folder: Path, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = crops(photo, 9)
    (tmp_path / "set/deep").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "set/deep" / name).write_bytes(data)
    (tmp_path / "set/notes.txt").write_text("no image")
    cells = {"label": [1] * 9, "image": [{"bytes": data, "path": name} for name, data in files.items()]}
    (tmp_path / "columns").mkdir()
    parquet.write_table(pyarrow.table(cells), tmp_path / "columns/rows.parquet", row_group_size=4)
    inputs = {"folder": "set", "pattern": "set/deep/*.png", "column": "columns"}
    archives = {}
    for kind, given in inputs.items():
        out = tmp_path / "out" / kind
        done = run(compress, [tmp_path / given], out, part=FEW)
        assert (done.images, done.parts, done.errors) == (9, 2, [])
        archives[kind] = []
        for path in sorted(out.glob("*.vdz")):
            with vdvae_codec.open_archive(path, model=str(tiny_folder)) as archive:
                archives[kind] += [(picture.name, picture.pixels) for picture in archive]
    assert [name for name, _ in archives["folder"]] == [f"deep/{name}" for name in files]
    assert [name for name, _ in archives["pattern"]] == list(files)
    assert [name for name, _ in archives["column"]] == [f"{n:08d}" for n in range(9)]
    for found in archives.values():
        for (_, pixels), data in zip(found, files.values(), strict=True):
            assert np.array_equal(pixels, read_picture(data, "").pixels)  # type: ignore[arg-type]


def test_pieces_end_at_their_bytes(shards: Path, compress: Compress, tmp_path: Path) -> None:
    size = max(len(data) for data in pixels_in_files(shards))
    done = run(compress, [shards], tmp_path / "out", part=Limit(100, size))
    assert done.parts > 12 and done.images == 24


def pixels_in_files(folder: Path) -> list[bytes]:
    files = []
    for path in folder.iterdir():
        with tarfile.open(path) as tar:
            files += [tar.extractfile(m).read() for m in tar]  # type: ignore[union-attr]
    return files


def test_what_cannot_be_read_is_a_line(photo: np.ndarray, compress: Compress, tmp_path: Path) -> None:
    folder, out, lines = tmp_path / "set", tmp_path / "out", list[str]()
    folder.mkdir()
    files = crops(photo, 4)
    (folder / "a.tar").write_bytes(shard(files | {"bad.png": files["000.png"][:200], "../up.png": files["001.png"]}))
    (folder / "bad.tar").write_bytes(b"no tar" * 200)
    (folder / "odd.parquet").write_bytes(b"no Parquet")
    (folder / "c.tar").write_bytes(shard({"only.png": b"no image"}))
    done = run(compress, [folder], out, failed=lines.append)
    assert (done.images, done.parts, lines) == (4, 2, done.errors)
    assert len(lines) == 5
    for name in ("bad.png", "up.png", "bad.tar: not an uncompressed tar", "odd.parquet: not a Parquet", "only.png"):
        assert sum(name in line and "\n" not in line for line in lines) == 1, (name, lines)
    assert [row["name"] for row in rows(out) if "error" in row] == ["bad.png", "../up.png", "only.png"]
    assert run(compress, [folder], out).errors == lines  # of parts that were there too
    with pytest.raises(VdvaeCodecError, match="is an input"):
        run(compress, [folder], folder)
    with pytest.raises(VdvaeCodecError, match="nothing was found"):
        run(Decompress(), [folder], out)
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin/a.tar").write_bytes(shard(files))
    with pytest.raises(VdvaeCodecError, match="two inputs are called a"):
        run(compress, [folder, tmp_path / "twin"], out)
    with pytest.raises(FileNotFoundError):
        run(compress, [tmp_path / "nowhere"], out)


def test_a_damaged_segment_costs_its_images(
    shards: Path, compress: Compress, tiny_folder: Path, tmp_path: Path
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    run(Compress(compress.model, "cpu", fallback=False, segment=4), [shards], out)
    data = bytearray((out / "s0-00000.vdz").read_bytes())
    data[len(data) // 2] ^= 1
    (out / "s0-00000.vdz").write_bytes(data)
    done = run(Decompress(str(tiny_folder), "cpu"), [out], back, part=Limit(4, 2**20))
    assert done.images == 20 and len(done.errors) == 1 and "4 images, 004.png to 007.png, lost" in done.errors[0]
    assert len(pixels_in(p.read_bytes() for p in back.glob("*.tar"))) == 20


def test_scores_are_those_of_the_images(shards: Path, photo: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    done = run(Score(str(tiny_folder), "cpu"), [shards], tmp_path / "out", part=FEW)
    assert (done.images, done.parts, done.output_bytes, done.errors) == (24, 6, 0, [])
    found = {row["name"]: row["bpd"] for row in rows(tmp_path / "out")}
    expected = vdvae_codec.score(list(crops(photo, 24).items()), model=str(tiny_folder), device="cpu")
    assert list(found) == [row["name"] for row in expected]
    assert np.allclose(list(found.values()), [row["bpd"] for row in expected], rtol=1e-3)
