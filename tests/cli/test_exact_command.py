"""compress --exact-file, in fresh processes: the very files come back, or it is said."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from command_line import done, errors, invoke, run
from image_samples import RGB, saved
from PIL import Image

import vdvae_codec
from vdvae_codec.codec.archive import write
from vdvae_codec.errors import DeflateError, VdvaeCodecError
from vdvae_codec.images.chunks import SIGNATURE, chunk, chunks
from vdvae_codec.images.files import read_picture
from vdvae_codec.images.scanlines import filtered, scanlines

KEPT = "kept as it is, since its pixels do not give the very file again"


def flushed(data: bytes) -> bytes:
    """A PNG of the same pixels, as no settings of zlib give it."""
    parts = [SIGNATURE]
    for kind, contents in chunks(data):
        if kind == b"IDAT":
            rows, deflater = zlib.decompress(contents), zlib.compressobj()
            contents = deflater.compress(rows[:999]) + deflater.flush(zlib.Z_FULL_FLUSH)
            contents += deflater.compress(rows[999:]) + deflater.flush()
        parts.append(chunk(kind, contents))
    return b"".join([*parts, chunk(b"IEND", b"")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Path:
    """Images of formats and sizes that a model codes, that WebP holds in less, and whose bytes are found or are not."""
    folder = tmp_path_factory.mktemp("exact") / "in"
    (folder / "sub").mkdir(parents=True)
    part, small = photo[:60, :80], Image.fromarray(RGB)
    files = {
        "photo.png": saved(part, "PNG", dpi=(72, 72)), "sub/grey.png": saved(part[..., 0], "PNG", optimize=True),
        "sub/flat.png": saved(np.repeat(np.repeat(part[:4, :5], 9, 0), 9, 1), "PNG"), "rows.bmp": saved(part, "BMP"),
        "palette.png": saved(np.asarray(small.quantize(9)), "PNG"), "behind.png": saved(part, "PNG") + b"behind",
        "x.jpg": saved(part, "JPEG"), "x.webp": saved(part, "WEBP", lossless=True),
        "y.png": flushed(saved(part, "PNG")),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_comes_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "in.vdz"
    result = run("compress", folder, "-o", packed, "--exact-file", "--json")
    assert result.returncode == 0, result.stderr
    assert f"3 images, each {KEPT}: x.jpg, x.webp, y.png" in result.stderr.decode()
    row = json.loads(result.stdout)
    assert row["output_bytes"] < row["input_bytes"] and row["stored"] < row["images"] == 9
    done("decompress", packed, "-o", tmp_path / "out")
    names = [path.relative_to(folder) for path in folder.rglob("*.*") if path.is_file()]
    assert len(names) == 9
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), name
    (line,) = done("info", packed, "--json")
    assert json.loads(line)["exact_files"] == 9
    assert invoke("test", packed)[0] == 0


@pytest.mark.parametrize("name", ["photo.png", "behind.png", "x.jpg", "y.png"])
def test_single_files_come_back_byte_for_byte(folder: Path, tmp_path: Path, name: str) -> None:
    packed, source = tmp_path / "x.vdz", folder / name
    result = run("compress", source, "-o", packed, "--exact-file")
    assert result.returncode == 0 and (KEPT in result.stderr.decode()) == (name[0] in "xy")
    assert packed.stat().st_size < source.stat().st_size + 100
    shown = "\n".join(done("info", packed))
    assert ("zlib of level 6" in shown) == (name[0] not in "xy")
    done("decompress", packed, "-o", tmp_path / name)
    assert (tmp_path / name).read_bytes() == source.read_bytes()


def test_the_package_keeps_files_too(folder: Path, tmp_path: Path) -> None:
    data = (folder / "photo.png").read_bytes()
    assert vdvae_codec.decompress(vdvae_codec.compress(data, exact_file=True)) == data
    assert vdvae_codec.decompress(vdvae_codec.compress(data)) != data
    kinds = np.random.default_rng(0).integers(0, 5, 4000, np.uint8)  # which cost more than the pixels
    rows = filtered(scanlines(np.full((4000, 1, 3), 90, np.uint8), 8, False), kinds, 3)
    head = struct.pack(">IIBBBBB", 1, 4000, 8, 2, 0, 0, 0)
    tall = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    for file in (b"".join([SIGNATURE, *tall]), (folder / "sub" / "flat.png").read_bytes()):
        packed = vdvae_codec.compress(file, exact_file=True)
        assert len(packed) < len(file) + 100 and vdvae_codec.decompress(packed) == file
    vdvae_codec.write_archive([("a.png", data), ("b", RGB)], tmp_path / "x.vdz", exact_file=True)
    with vdvae_codec.open_archive(tmp_path / "x.vdz") as archive:
        assert archive["a.png"].to_bytes()[0] == data and np.array_equal(archive["b"].to_array(), RGB)


def test_of_another_zlib_the_pixels_come_back_and_it_is_said(folder: Path, tmp_path: Path) -> None:
    """Files of a machine whose zlib gives other bytes: the checksum of the stream is another one."""
    data = (folder / "photo.png").read_bytes()
    for name in ("", "sub/a.png"):
        picture = read_picture(data, name or "x.png", exact_file=True)
        frame = bytearray(picture.metadata["frame"])
        frame[6] ^= 1
        file = BytesIO()
        elsewhere = dataclasses.replace(picture, metadata={"frame": bytes(frame)}, name=name)
        write([elsewhere], file, verify=False)
        packed = tmp_path / f"{len(name)}.vdz"
        packed.write_bytes(file.getvalue())
        out = tmp_path / f"out{len(name)}"
        result = run("decompress", packed, "-o", out if name else out.with_suffix(".png"))
        assert "of this machine deflates its pixels to other bytes than its file had" in errors(result)[0]
        loosely = (out / name if name else out.with_suffix(".png")).read_bytes()
        assert loosely != data and [c for c in chunks(loosely) if c[0] != b"IDAT"] == [
            c for c in chunks(data) if c[0] != b"IDAT"
        ]
        assert np.array_equal(np.asarray(Image.open(BytesIO(loosely))), np.asarray(Image.open(BytesIO(data))))
        shown = run("cat", packed, *[name] * bool(name))
        assert shown.stdout == loosely and len(errors(shown)) == 1
        assert len(errors(run("test", packed))) == 2
    with pytest.raises(DeflateError, match=r"^zlib "):
        vdvae_codec.decompress((tmp_path / "0.vdz").read_bytes())
    assert vdvae_codec.decompress_array((tmp_path / "0.vdz").read_bytes()).shape == (60, 80, 3)


def test_other_bytes_do_not_pass_the_comparison(folder: Path) -> None:
    picture = read_picture((folder / "photo.png").read_bytes(), "x.png", exact_file=True)
    other = dataclasses.replace(picture, data=flushed(picture.data))
    with pytest.raises(VdvaeCodecError, match="does not decode to"):
        write([other], BytesIO())
