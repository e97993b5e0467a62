"""Tar shards of real images, and what is in those that a run wrote."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from io import BytesIO

import numpy as np

from vdvae_codec.images.files import read_picture, write_image


def crops(photo: np.ndarray, count: int, first: int = 0) -> dict[str, bytes]:
    """PNGs of different crops of 24x32 pixels by name."""
    numbers = range(first, first + count)
    return {f"{n:03d}.png": write_image(photo[n : n + 24, 2 * n : 2 * n + 32], {}, ".png") for n in numbers}


def shard(files: dict[str, bytes]) -> bytes:
    """A WebDataset shard of images, each with a label behind it."""
    whole = BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, data in files.items():
            for member_name, content in ((name, data), (name.replace(".png", ".cls"), b"3")):
                member = tarfile.TarInfo(member_name)
                member.size, member.mtime = len(content), 1_700_000_000
                tar.addfile(member, BytesIO(content))
    return whole.getvalue()


def pixels_in(tars: Iterable[bytes]) -> dict[str, np.ndarray]:
    """The images of shards by name."""
    found = {}
    for data in tars:
        with tarfile.open(fileobj=BytesIO(data)) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None and member.mtime == 1_700_000_000
                found[member.name] = read_picture(file.read(), member.name).pixels
    return found  # type: ignore[return-value]
