from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import NATIVE, done, names, pixels

from vdvae_codec import DEFAULT_MODEL
from vdvae_codec.images.files import write_image


@pytest.fixture(scope="session")
def sources(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    crops = {"photo": photo, "grey": photo[:50, :70, :1], "odd": photo[3:50, 5:38], "dot": photo[:1, :1]}
    crops["wide"] = np.pad(photo[:32], ((0, 0), (0, 160), (0, 0)), "symmetric")  # several tiles
    for name, crop in crops.items():
        (folder / f"{name}.png").write_bytes(write_image(crop, {}, ".png"))
    return [folder / f"{name}.png" for name in crops]


@pytest.fixture(scope="session")
def native(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the sources as the shipped model codes them, by two threads with all that this CPU can do."""
    folder = tmp_path_factory.mktemp("native")
    lines = done("compress", *sources, "-o", folder, "--no-fallback", "--json", env=NATIVE)
    for line, source in zip(lines, sources, strict=True):
        row = json.loads(line)
        assert (row["input"], row["images"], row["stored"]) == (str(source), 1, 0)
        assert row["model"] == DEFAULT_MODEL
        assert row["output_bytes"] == Path(row["output"]).stat().st_size
        assert row["output_bytes"] == row["word_bytes"] + row["table_bytes"]
        assert row["bpd"] == pytest.approx(8 * row["output_bytes"] / pixels(source).size)
    assert names(folder) == sorted(f"{s.stem}.vdz" for s in sources)
    return folder
