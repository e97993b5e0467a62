"""Files of every released format version and model stay decodable: bytes once written, decoded for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdvae_codec.api import decompress, info

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.mark.parametrize("vdz", sorted(GOLDEN.glob("*.vdz")), ids=lambda path: path.stem)
def test_golden_file_decodes_to_its_image(vdz: Path, tmp_path: Path) -> None:
    image, suffix = decompress(vdz.read_bytes())
    out = tmp_path / f"out{suffix}"
    out.write_bytes(image)
    with Image.open(out) as decoded, Image.open(vdz.with_suffix(".png")) as expected:
        assert decoded.mode == expected.mode
        assert np.array_equal(np.asarray(decoded), np.asarray(expected))


def test_there_is_one_of_each_kind_and_shape() -> None:
    kinds = {(i["version"], i["kind"], i["channels"]) for i in (info(p.read_bytes()) for p in GOLDEN.glob("*.vdz"))}
    assert kinds >= {(1, "model", 3), (1, "model", 1), (1, "file", 0)}
