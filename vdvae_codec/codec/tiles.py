"""Coded pixels of images to the entropy coder's words and back: tiles, groups of tiles of one shape, one stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.schedule import code_groups
from vdvae_codec.codec.store import Released
from vdvae_codec.codec.visitors import pop_group, push_group
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.errors import FormatError
from vdvae_codec.images.tiling import Place, cut_tiles, in_image, paste_tile, tile_boxes, tile_grid, wave_tile
from vdvae_codec.model.config import ModelConfig

GROUP_PIXELS = 2**18  # of the largest groups: bounds the memory
WAVE_PIXELS = 3 * 2**20  # of those of causal models, whose steps are the better the more tiles there are
MAX_GROUP_PIXELS = 2**23  # of those that are read: more than any that is written
MAX_PIXELS = 2**32  # of the images of a segment
MAX_TILES = 2**20  # of them
Shape = tuple[int, int, int]  # height, width, channels of an image
Mask = np.ndarray | None  # (H/2, W/2) bool, rounded up: a chroma mask


@dataclass(frozen=True)
class Run:
    """Tiles of one shape and number of channels, in coding order."""

    tile: tuple[int, int]
    channels: int
    places: list[Place]


@dataclass(frozen=True)
class Words:
    """What coding images gave."""

    payload: bytes  # the stack's words
    groups: tuple[int, ...]  # their sizes
    direct: int  # number of groups, the first ones, that borrowed nothing
    initial_bits: float  # what the latents of the direct groups cost because nothing could be borrowed yet
    image_bits: np.ndarray  # (images,) what each of them cost


def tile_of(shape: Shape, config: ModelConfig) -> tuple[int, int]:
    """The tiles that a model cuts images of a shape into: part of the format, never to be changed."""
    rule = wave_tile if config.causal else tile_grid
    return rule(shape[0], shape[1], config.tile, config.multiple)


def runs_of(shapes: Sequence[Shape], config: ModelConfig) -> list[Run]:
    """The tiles of images, gathered by shape and channels in the order of their first appearance."""
    runs: dict[tuple[tuple[int, int], int], Run] = {}
    for n, shape in enumerate(shapes):
        tile, channels = tile_of(shape, config), shape[2]
        run = runs.setdefault((tile, channels), Run(tile, channels, []))
        run.places.extend((n, box) for box in tile_boxes(shape[0], shape[1], tile))
    return list(runs.values())


def group_of(places: Sequence[Place], run: Run, masks: Sequence[Mask], device: torch.device) -> Group:
    """The group of some tiles of a run; ``masks`` are those of all images."""
    first = in_image([box for _, box in places], run.tile)  # (B, th, tw)
    if run.channels == 1:
        return Group(torch.from_numpy(first[:, None]).to(device))
    later = first.copy()
    for n, (image, (y0, x0, y1, x1)) in enumerate(places):
        mask = masks[image]
        if mask is not None:
            blocks = mask[y0 // 2 : (y1 + 1) // 2, x0 // 2 : (x1 + 1) // 2]
            others = blocks.repeat(2, 0).repeat(2, 1)
            others[::2, ::2] = False  # of each block the first pixel is coded whole
            later[n, : y1 - y0, : x1 - x0] &= ~others[: y1 - y0, : x1 - x0]
    return Group(torch.from_numpy(np.stack([first, later], 1)).to(device))


def tensor_of(
    images: Sequence[np.ndarray], places: Sequence[Place], run: Run, masks: Sequence[Mask], device: torch.device
) -> tuple[Tensor, Group]:
    """Tiles of images (H, W, 1 or 3) uint8, (B, 3, th, tw) float32 in G, R, B order, and their group."""
    cut, _ = cut_tiles(images, places, run.tile)
    x = torch.from_numpy(cut).to(device).float().contiguous(memory_format=torch.channels_last)
    return x, group_of(places, run, masks, device)


def encode(images: Sequence[np.ndarray], masks: Sequence[Mask], released: Released) -> Words:
    """Codes images (H, W, 1 or 3) uint8, run after run, in growing groups; ``masks`` are their chroma masks."""
    shapes = [shape_of(image) for image in images]
    check_size(shapes, released.config)
    runs = runs_of(shapes, released.config)
    starts = np.cumsum([0, *(len(run.places) for run in runs)])
    total = int(starts[-1])
    stack, initial_bits, direct_groups, image_bits = Stack(), 0.0, 0, np.zeros(len(images))
    with tqdm(total=total, desc="encoding", unit="tile", disable=None, leave=False) as bar:

        def run_at(start: int) -> int:
            return int(np.searchsorted(starts, start, "right")) - 1

        def room(start: int) -> tuple[int, int]:
            n = run_at(start)
            same = int(starts[n + 1]) - start
            return same, largest_group(same, runs[n], released.config)

        def attempt(start: int, size: int, direct: bool) -> bool:
            nonlocal stack, initial_bits, direct_groups
            if start == 0:
                stack, initial_bits, direct_groups = Stack(), 0.0, 0
                image_bits[:] = 0
                bar.reset()
            n = run_at(start)
            begin = start - int(starts[n])
            places = runs[n].places[begin : begin + size]
            x, group = tensor_of(images, places, runs[n], masks, released.device)
            pushed = push_group(released.model, released.tables, group, x, stack, direct)
            if pushed is None:
                return False
            initial_bits += pushed.initial_bits
            direct_groups += direct
            np.add.at(image_bits, [image for image, _ in places], pushed.tile_bits)
            bar.update(size)
            return True

        first = room(0)[1] if total and released.config.causal else 1
        groups = code_groups(total, room, attempt, first)
    payload = stack.words().astype("<u4").tobytes()
    return Words(payload, tuple(groups), direct_groups, initial_bits, image_bits)


def largest_group(left: int, run: Run, config: ModelConfig) -> int:
    """Tiles of the next group of a run of which some are left: those of a causal model are about equal."""
    most = max(1, (WAVE_PIXELS if config.causal else GROUP_PIXELS) // (run.tile[0] * run.tile[1]))
    return -(-left // -(-left // most)) if config.causal and left else most


def shape_of(image: np.ndarray) -> Shape:
    height, width, channels = image.shape
    return height, width, channels


def check_size(shapes: Sequence[Shape], config: ModelConfig) -> int:
    """Number of tiles of images; raises FormatError for more than a segment can hold, before memory is asked for."""
    tiles = count_tiles(shapes, config)
    if sum(height * width for height, width, _ in shapes) > MAX_PIXELS or tiles > MAX_TILES:
        raise FormatError("table: images of more pixels than a segment can hold")
    return tiles


def count_tiles(shapes: Sequence[Shape], config: ModelConfig) -> int:
    """Number of tiles of images, without listing them."""
    grids = ((shape, tile_of(shape, config)) for shape in shapes)
    return sum(-(-shape[0] // tile[0]) * -(-shape[1] // tile[1]) for shape, tile in grids)


def decode(
    shapes: Sequence[Shape], masks: Sequence[Mask], groups: Sequence[int], direct: int, payload: bytes,
    released: Released,
) -> list[np.ndarray]:
    """The images (H, W, 1 or 3) uint8 of a payload; raises FormatError if the model cannot have written it."""
    if check_size(shapes, released.config) != sum(groups):
        raise FormatError("table: the groups do not fit the images")
    runs = runs_of(shapes, released.config)
    try:
        images = [np.empty(shape, np.uint8) for shape in shapes]
    except (ValueError, MemoryError) as error:
        raise FormatError("table: impossible sizes of images") from error
    stack = Stack(np.frombuffer(payload, "<u4"))
    left = [len(run.places) for run in runs]
    with tqdm(total=sum(left), desc="decoding", unit="tile", disable=None, leave=False) as bar:
        for n, size in reversed(list(enumerate(groups))):
            while left and left[-1] == 0:
                left.pop()
            if not left or size > left[-1]:
                raise FormatError("table: the groups do not fit the images")
            run, end = runs[len(left) - 1], left[-1]
            if size * run.tile[0] * run.tile[1] > MAX_GROUP_PIXELS:
                raise FormatError(f"table: a group of {size} tiles is larger than any that is written")
            places = run.places[end - size : end]
            group = group_of(places, run, masks, released.device)
            x = pop_group(released.model, released.tables, group, stack, direct=n < direct)
            for tile, (image, box) in zip(x.to(torch.uint8).cpu().numpy(), places):
                paste_tile(images[image], box, tile)
            left[-1] -= size
            bar.update(size)
    if not stack.empty:
        raise FormatError("payload: bits are left over after the last pixel")
    return images
