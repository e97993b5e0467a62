"""Files of every released format version and model stay decodable: bytes once written, decoded for ever."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdvae_codec.api import decompress, info
from vdvae_codec.sets import read_archive

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.mark.parametrize("vdz", sorted(GOLDEN.glob("v[13]-*.vdz")), ids=lambda path: path.stem)
def test_golden_file_decodes_to_its_image(vdz: Path, tmp_path: Path) -> None:
    image, suffix = decompress(vdz.read_bytes())
    out = tmp_path / f"out{suffix}"
    out.write_bytes(image)
    with Image.open(out) as decoded, Image.open(vdz.with_suffix(".png")) as expected:
        assert decoded.mode == expected.mode
        assert np.array_equal(np.asarray(decoded), np.asarray(expected))


@pytest.mark.parametrize("vdz", sorted(GOLDEN.glob("v[24]-*.vdz")), ids=lambda path: path.stem)
def test_golden_archive_decodes_to_its_images(vdz: Path) -> None:
    folder, damage = vdz.with_suffix(""), list[str]()
    with vdz.open("rb") as file:
        members = list(read_archive(file, lost=damage.append))
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert [m.name for m in members] == names and not damage
    for n, member in enumerate(members):
        with Image.open(BytesIO(member.to_bytes())) as decoded, Image.open(folder / member.name) as expected:
            assert decoded.mode == expected.mode
            assert np.array_equal(np.asarray(decoded), np.asarray(expected))
        assert member.entry.modified is not None and member.entry.modified >= 1600000000 + n


def test_there_is_one_of_each_kind_and_shape() -> None:
    files = [p.read_bytes() for p in GOLDEN.glob("v[13]-*.vdz")]
    kinds = {(i["version"], i["kind"], i["channels"]) for i in map(info, files)}
    assert kinds >= {(1, "model", 3), (1, "model", 1), (1, "file", 0), (3, "model", 3)}
