"""Shards of uncompressed tar: indexed once, their images decoded whenever they are asked for."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vdvae_codec.errors import ImageError, TrainingError
from vdvae_codec.images.files import no_limits as no_limits
from vdvae_codec.training.sources.choice import Choice, Index, unpack
from vdvae_codec.training.sources.files import is_image, naming, reason

log = logging.getLogger(__name__)


class Shards:
    """Image files inside uncompressed tar files, decoded when they are asked for; see ``data.Images``."""

    def __init__(self, shards: Sequence[Path], index: Index):
        self.names, self.sizes = unpack(index["names"]), index["sizes"]
        self._shards, self._places = shards, index["places"]

    def __getitem__(self, n: int) -> np.ndarray:
        """Pixels (H, W, 3) uint8; raises TrainingError if the shard itself cannot be read.

        An image with an intact header but damaged pixels is named in a warning and comes out black: a training of days
        is not to end because of it.
        """
        shard, start, length = self._places[n]
        height, width = self.sizes[n]
        with naming(self._shards[shard]), self._shards[shard].open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, start)
        try:
            with no_limits, Image.open(BytesIO(data)) as image:
                pixels = np.asarray(image.convert("RGB"))
            if pixels.shape != (height, width, 3):
                raise ImageError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels instead of {width}x{height}")
        except Exception as error:
            log.warning("black instead of %s: %s", self.names[n], reason(error))
            return np.zeros((height, width, 3), np.uint8)
        return pixels


def index_shards(shards: Sequence[Path], choice: Choice) -> Index:
    """Lists the images of tar files; ``places`` (N, 3) int64 says which shard, from which byte, how many bytes."""
    places, start = [], 0
    for number, shard in enumerate(shards):
        with naming(shard):
            try:
                tar = tarfile.open(shard, "r:")  # noqa: SIM115
            except tarfile.ReadError as error:
                raise TrainingError("not an uncompressed tar; decompress it if it is a compressed one") from error
            with tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # or they fill the memory
                    choice.reach(start + member.offset)
                    if not member.isreg() or not is_image(member.name):
                        continue
                    name = f"{shard.name}/{member.name}"
                    try:
                        with no_limits, Image.open(tar.extractfile(member)) as image:  # type: ignore[arg-type]
                            width, height = image.size
                    except Exception as error:
                        choice.skip(f"{name}: {reason(error)}")
                        continue
                    if choice.fits(name, height, width):
                        choice.names.append(name)
                        choice.sizes.append((height, width))
                        places.append((number, member.offset_data, member.size))
        start += shard.stat().st_size
        choice.reach(start)
    return {**choice.index(), "places": np.array(places, np.int64)}
