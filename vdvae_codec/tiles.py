"""Pixels of images to an entropy coded payload and back: tiles, groups of tiles of one shape, one stack."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.coding.schedule import code_groups
from vdvae_codec.coding.stack import Stack
from vdvae_codec.config import ModelConfig
from vdvae_codec.errors import FormatError
from vdvae_codec.hierarchy import Group, cells_of, has_cells, pop_group, push_group
from vdvae_codec.images import Box, Place, cut_tiles, inside_tiles, tile_boxes, tile_grid
from vdvae_codec.released import Released

GROUP_PIXELS = {"cpu": 2**18, "cuda": 2**22}  # of the largest groups: bounds the memory
CELL_BITS = 0.5  # that a marked cell may cost at most: it saves about 5 where colours were interpolated, 0.3 by chance
MAX_GROUP_PIXELS = 2**23  # a file that claims more is refused before memory is asked for
Shape = tuple[int, int, int]  # height, width, channels of an image


@dataclass(frozen=True)
class Run:
    """Tiles of one shape and number of channels, in coding order."""

    tile: tuple[int, int]
    channels: int
    places: list[Place]


@dataclass(frozen=True)
class Coded:
    """What coding images gave: the stack's words, and the sizes of the groups, of which the first are ``direct``."""

    payload: bytes
    groups: tuple[int, ...]
    direct: int
    initial_bits: float  # what the latents of the direct groups cost because nothing could be borrowed yet


def runs_of(shapes: Sequence[Shape], tiles: Sequence[tuple[int, int]]) -> list[Run]:
    """The tiles of images, cut by ``tiles`` (height, width) each, gathered by shape in order of first appearance."""
    runs: dict[tuple[tuple[int, int], int], Run] = {}
    for n, ((height, width, channels), tile) in enumerate(zip(shapes, tiles)):
        run = runs.setdefault((tile, channels), Run(tile, channels, []))
        run.places.extend((n, box) for box in tile_boxes(height, width, tile))
    return list(runs.values())


def tile_of(shape: Shape, config: ModelConfig) -> tuple[int, int]:
    """The tiles that a model cuts images of a shape into: part of the format of archives, never to be changed."""
    return tile_grid(shape[0], shape[1], config.tile, config.max_stride)


def tensor_of(
    images: Sequence[np.ndarray], places: Sequence[Place], tile: tuple[int, int], device: torch.device,
    cells: np.ndarray | None = None,
) -> tuple[Tensor, Group]:
    """Cuts tiles out of images (H, W, 1 or 3) uint8: (B, 3, th, tw) float32 in G, R, B order, and their group."""
    cut, inside = cut_tiles(images, places, tile)
    tensor = torch.from_numpy(cut).to(device).float()
    group = group_of(inside, [box for _, box in places], images[places[0][0]].shape[2], device, cells)
    return tensor.contiguous(memory_format=torch.channels_last), group


def group_of(
    inside: np.ndarray, boxes: list[Box], channels: int, device: torch.device, cells: np.ndarray | None = None
) -> Group:
    """``inside`` (B, th, tw) bool; ``cells`` (H/2, W/2) bool, rounded up, are of the image that all boxes are in."""
    mask = torch.from_numpy(inside).to(device)
    if cells is None:
        return Group(mask, channels)
    count, height, width = inside.shape
    cut = np.zeros((count, height // 2, width // 2), bool)
    for part, (y0, x0, y1, x1) in zip(cut, boxes):
        found = cells[y0 // 2 : (y1 + 1) // 2, x0 // 2 : (x1 + 1) // 2]
        part[: found.shape[0], : found.shape[1]] = found
    return Group(mask, channels, torch.from_numpy(cut).to(device))


def image_cells(image: np.ndarray, tile: tuple[int, int], released: Released) -> np.ndarray | None:
    """The 2x2 pixels of an image (H, W, C) whose colours lie ``between``: (H/2, W/2) bool, rounded up; None if so few
    or so scattered that it is chance, or if the model cannot code them apart."""
    height, width, channels = image.shape
    if channels == 1 or not has_cells(released.model):
        return None
    cells = np.zeros((-(-height // 2), -(-width // 2)), bool)
    for box in tile_boxes(height, width, tile):
        x, _ = tensor_of([image], [(0, box)], tile, released.device)
        y, x0 = box[0] // 2, box[1] // 2
        part = cells[y : y + tile[0] // 2, x0 : x0 + tile[1] // 2]
        part[:] = cells_of(x)[0].cpu().numpy()[: part.shape[0], : part.shape[1]]
    cost = 8 * len(zlib.compress(np.packbits(cells).tobytes(), 9))
    return cells if cost < CELL_BITS * cells.sum() else None


def encode(
    images: Sequence[np.ndarray], runs: Sequence[Run], released: Released, unit: str = "tile",
    cells: np.ndarray | None = None,
) -> Coded:
    """Codes the tiles of images (H, W, 1 or 3) uint8, run after run. ``cells`` are those of a single image."""
    starts = np.cumsum([0, *(len(run.places) for run in runs)])
    total = int(starts[-1])
    stack, initial_bits, direct_groups = Stack(), 0.0, 0
    with tqdm(total=total, desc="encoding", unit=unit, disable=None, leave=False) as bar:

        def run_at(start: int) -> int:
            return int(np.searchsorted(starts, start, "right")) - 1

        def room(start: int) -> tuple[int, int]:
            n = run_at(start)
            pixels = runs[n].tile[0] * runs[n].tile[1]
            return int(starts[n + 1]) - start, max(1, GROUP_PIXELS[released.device.type] // pixels)

        def attempt(start: int, size: int, direct: bool) -> bool:
            nonlocal stack, initial_bits, direct_groups
            if start == 0:
                stack, initial_bits, direct_groups = Stack(), 0.0, 0
                bar.reset()
            n = run_at(start)
            begin = start - int(starts[n])
            x, group = tensor_of(images, runs[n].places[begin : begin + size], runs[n].tile, released.device, cells)
            bits = push_group(released.model, released.tables, group, x, stack, direct)
            if bits is None:
                return False
            initial_bits += bits
            direct_groups += direct
            bar.update(size)
            return True

        groups = code_groups(total, room, attempt)
    return Coded(stack.words().astype("<u4").tobytes(), tuple(groups), direct_groups, initial_bits)


def check_groups(groups: Sequence[int], smallest: tuple[int, int]) -> None:
    """Raises FormatError for groups so large that only a made-up file claims them: before memory is asked for."""
    if max(groups, default=0) * smallest[0] * smallest[1] > MAX_GROUP_PIXELS:
        raise FormatError(f"header: a group of {max(groups)} tiles is larger than any that is written")


def decode(
    shapes: Sequence[Shape], runs: Sequence[Run], groups: Sequence[int], direct: int, payload: bytes,
    released: Released, unit: str = "tile", cells: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The images (H, W, 1 or 3) uint8 of a payload; raises FormatError if the model cannot have written it."""
    for run in runs:
        if any(side % released.config.max_stride or side > released.config.tile for side in run.tile):
            raise FormatError(f"header: model {released.name!r} has no tiles of {run.tile[0]}x{run.tile[1]}")
    try:
        images = [np.empty(shape, np.uint8) for shape in shapes]
    except (ValueError, MemoryError) as error:
        raise FormatError("header: impossible sizes of images") from error
    stack = Stack(np.frombuffer(payload, "<u4"))
    left = [len(run.places) for run in runs]
    with tqdm(total=sum(left), desc="decoding", unit=unit, disable=None, leave=False) as bar:
        for n, size in reversed(list(enumerate(groups))):
            while left and left[-1] == 0:
                left.pop()
            if not left or size > left[-1]:
                raise FormatError("header: the groups do not fit the images")
            run, end = runs[len(left) - 1], left[-1]
            places = run.places[end - size : end]
            boxes = [box for _, box in places]
            group = group_of(inside_tiles(boxes, run.tile), boxes, run.channels, released.device, cells)
            x = pop_group(released.model, released.tables, group, stack, direct=n < direct)
            channels = [1, 0, 2] if run.channels == 3 else [0]
            tiles = x.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()[..., channels]
            for pixels, (image, (y0, x0, y1, x1)) in zip(tiles, places):
                images[image][y0:y1, x0:x1] = pixels[: y1 - y0, : x1 - x0]
            left[-1] -= size
            bar.update(size)
    if any(left):
        raise FormatError("header: the groups do not fit the images")
    if not stack.empty:
        raise FormatError("payload: bits are left over after the last pixel")
    return images
