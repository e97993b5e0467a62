"""Damaged files of a single image: one line, exit status 1, and never a wrong image."""

from __future__ import annotations

import dataclasses
from io import BytesIO
from pathlib import Path

import pytest
from command_line import errors, names, run

from vdvae_codec import DEFAULT_MODEL, decompress
from vdvae_codec.codec.store import Released
from vdvae_codec.errors import FormatError, VdvaeCodecError
from vdvae_codec.format.vdz import Reader, Segment, Writer
from vdvae_codec.images.files import write_image


def segment_of(data: bytes) -> Segment:
    reader = Reader(BytesIO(data))
    return reader.segment(reader.segments[0])


def changed(data: bytes, **changes: object) -> bytes:
    """The file with other fields, and the checksums that these have."""
    file = BytesIO()
    writer = Writer(file)
    writer.add(dataclasses.replace(segment_of(data), **changes))  # type: ignore[arg-type]
    writer.finish()
    return file.getvalue()


def test_damaged_files_leave_nothing(native: Path, tmp_path: Path) -> None:
    data = (native / "odd.vdz").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 16
    files = {"other": changed(data, digest=bytes(range(16))), "lies": changed(data, pixels_crc=0)}
    files |= {"flipped": bytes(flipped), "empty": b"", "longer": data + b"x", "odd": data}
    files |= {f"cut{n}": data[:n] for n in (5, 9, 20, 40, 65, len(data) // 2, len(data) - 1)}
    for name, content in files.items():
        (tmp_path / f"{name}.vdz").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    inputs = [tmp_path / f"{name}.vdz" for name in files]
    result = run("decompress", *inputs, "-o", out)
    lines = errors(result)
    for line, path in zip(lines, (path for path in inputs if path.stem != "odd"), strict=True):
        assert str(path) in line
    assert repr(DEFAULT_MODEL) in lines[0] and bytes(range(16)).hex() in lines[0]
    assert "checksum" in lines[1]
    assert names(out) == ["odd.png"]
    lines = errors(run("info", *(path for path in inputs if path.stem not in ("odd", "other", "lies"))))
    assert len(lines) == len(inputs) - 3


@pytest.fixture(scope="module")
def small(tiny_model: Released, photo_png: Path) -> bytes:
    """A file of a grey image that the tiny model codes."""
    from vdvae_codec import compress
    from vdvae_codec.images.files import read_rgb

    data = write_image(read_rgb(photo_png)[:24, :40, :1], {"xmp": b"some"}, ".png")
    return compress(data, model=tiny_model, fallback=False)


def test_every_cut_and_flip_is_refused(small: bytes, tiny_model: Released) -> None:
    assert segment_of(small).entries[0].coded and decompress(small, model=tiny_model)
    for length in range(len(small)):
        with pytest.raises(FormatError):
            decompress(small[:length], model=tiny_model)
    for bit in [*range(8 * 160), *range(8 * 160, 8 * len(small), 13)]:
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decompress(bytes(damaged), model=tiny_model)


def test_flips_behind_good_checksums_never_give_a_wrong_image(small: bytes, tiny_model: Released) -> None:
    payload = segment_of(small).payload
    for place in (0, len(payload) // 2, len(payload) - 2):
        odd = bytearray(payload)
        odd[place] ^= 4
        with pytest.raises(VdvaeCodecError):
            decompress(changed(small, payload=bytes(odd)), model=tiny_model)
