"""Files of every released format version stay decodable: bytes once written, decoded for ever."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdvae_codec.codec.archive import decompress, open_archive
from vdvae_codec.codec.inspect import info
from vdvae_codec.images.files import read_picture

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TIMES = {"a.png": 1_600_000_000, "sub/profiled.png": 1_600_000_001, "screen.png": None, "z-größe.png": -1}


def check_same(data: bytes, expected: Path) -> None:
    with Image.open(BytesIO(data)) as image, Image.open(expected) as other:
        assert image.mode == other.mode and np.array_equal(np.asarray(image), np.asarray(other))
    assert read_picture(data, "x.png").metadata == read_picture(expected.read_bytes(), "x.png").metadata


@pytest.mark.parametrize("name", ["rgb", "grey", "transformed", "stored"])
def test_golden_file_decodes_to_its_image(name: str) -> None:
    image = decompress((GOLDEN / f"{name}.vdz").read_bytes(), device="cpu")
    check_same(image, GOLDEN / f"{name}.png")
    if name == "stored":
        assert image == (GOLDEN / "stored.png").read_bytes()


def test_golden_archive_decodes_to_its_images() -> None:
    with open_archive(GOLDEN / "archive.vdz", device="cpu") as archive:
        assert archive.names == list(TIMES)
        for picture in archive:
            assert picture.modified == TIMES[picture.name]
            check_same(picture.to_bytes(".png")[0], GOLDEN / "archive" / picture.name)


def test_golden_frames() -> None:
    with open_archive(GOLDEN / "framed.vdz", device="cpu") as archive:
        png, bmp = archive
        check_same(png.to_bytes()[0], GOLDEN / "framed" / "a.png")
        assert bmp.to_bytes() == ((GOLDEN / "framed" / "b.bmp").read_bytes(), ".bmp")


def test_there_is_one_of_each_kind() -> None:
    rows = {path.stem: info(BytesIO(path.read_bytes())) for path in GOLDEN.glob("*.vdz")}
    assert {row["version"] for row in rows.values()} == {1}
    assert [rows[name]["channels"] for name in ("rgb", "grey", "transformed", "stored")] == [3, 1, 3, 0]
    assert rows["transformed"]["transforms"] == ["PhotoCD", "chroma"] and rows["rgb"]["transforms"] == []
    assert sum(rows["rgb"]["groups"]) > 1
    assert [(rows["archive"][key]) for key in ("images", "segments", "stored")] == [4, 2, 1]
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 400_000
