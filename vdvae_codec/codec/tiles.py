"""Coded pixels of images to the entropy coder's words and back: tiles, groups of tiles of one shape, stacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.helpers import ALONE, Helpers
from vdvae_codec.codec.schedule import code_groups
from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.codec.visitors import Pushed, pop_group, push_group
from vdvae_codec.entropy.ans import FREE, Stack
from vdvae_codec.errors import FormatError
from vdvae_codec.exact.arithmetic import plain
from vdvae_codec.images.tiling import Place, cut_tiles, in_image, paste_tile, tile_boxes
from vdvae_codec.model.config import ModelConfig

GROUP_PIXELS = 2**16  # of the largest groups: what a core's caches can still help with, and little memory
WAVE_PIXELS = 9 * 2**18  # of those of causal models, whose steps are the better the more tiles there are; of all read
SHARED_PIXELS = 2**16  # of a run of a causal model that is divided into pairs of groups, for two processes
FEW_TILES = 16  # at most, of other models, that are tried on stacks of their own
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

    payload: bytes  # the stacks' words
    groups: tuple[int, ...]  # their sizes
    direct: int  # number of groups, the first ones, that borrowed nothing
    initial_bits: float  # what the latents of the direct groups cost because nothing could be borrowed yet
    image_bits: np.ndarray  # (images,) what each of them cost
    stacks: tuple[int, ...] = ()  # bytes of each group's own stack; none where all are on one


def runs_of(shapes: Sequence[Shape], config: ModelConfig) -> list[Run]:
    """The tiles of images, gathered by shape and channels in the order of their first appearance."""
    runs: dict[tuple[tuple[int, int], int], Run] = {}
    for n, shape in enumerate(shapes):
        tile, channels = config.tile_of(*shape[:2]), shape[2]
        run = runs.setdefault((tile, channels), Run(tile, channels, []))
        run.places.extend((n, box) for box in tile_boxes(shape[0], shape[1], tile))
    return list(runs.values())


def mask_of(places: Sequence[Place], run: Run, masks: Sequence[Mask]) -> np.ndarray:
    """(B, 1 or 2, th, tw) bool: what is coded of some tiles of a run, as ``Group`` has it; ``masks`` of all images."""
    first = in_image([box for _, box in places], run.tile)  # (B, th, tw)
    if run.channels == 1:
        return first[:, None]
    later = first.copy()
    for n, (image, (y0, x0, y1, x1)) in enumerate(places):
        mask = masks[image]
        if mask is not None:
            blocks = mask[y0 // 2 : (y1 + 1) // 2, x0 // 2 : (x1 + 1) // 2]
            others = blocks.repeat(2, 0).repeat(2, 1)
            others[::2, ::2] = False  # of each block the first pixel is coded whole
            later[n, : y1 - y0, : x1 - x0] &= ~others[: y1 - y0, : x1 - x0]
    return np.stack([first, later], 1)


def cut_group(
    images: Sequence[np.ndarray], places: Sequence[Place], run: Run, masks: Sequence[Mask]
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of images (H, W, 1 or 3) uint8, (B, 3, th, tw) uint8 in G, R, B order, and what of them is coded."""
    return cut_tiles(images, places, run.tile)[0], mask_of(places, run, masks)


def tensor_of(
    images: Sequence[np.ndarray], places: Sequence[Place], run: Run, masks: Sequence[Mask], device: torch.device
) -> tuple[Tensor, Group]:
    """Likewise as float32, and as a group."""
    cut, coded_mask = cut_group(images, places, run, masks)
    x = torch.from_numpy(cut).to(device).float().contiguous(memory_format=torch.channels_last)
    return x, Group(torch.from_numpy(coded_mask).to(device))


def encode(
    images: Sequence[np.ndarray], masks: Sequence[Mask], released: Released, helpers: Helpers = ALONE
) -> Words:
    """Codes images (H, W, 1 or 3) uint8, run after run; ``masks`` are their chroma masks."""
    shapes = [shape_of(image) for image in images]
    check_size(shapes, released.config)
    runs = runs_of(shapes, released.config)
    total = sum(len(run.places) for run in runs)
    found: list[Words] = []
    if released.config.causal or total <= FEW_TILES:
        alone = helpers if released.device.type == "cpu" else ALONE
        found.append(encode_apart(images, masks, runs, released, alone))
    if not released.config.causal and total > 1:
        found.append(encode_chained(images, masks, runs, released))
    return min(found, key=lambda words: len(words.payload))


def encode_apart(
    images: Sequence[np.ndarray], masks: Sequence[Mask], runs: Sequence[Run], released: Released, helpers: Helpers
) -> Words:
    """Each group on a stack of its own: for latents that cost little, as groups can be decoded at once, and for few
    tiles, of which the first would pay more than the others borrow."""
    parts = [(run, places) for run in runs for places in groups_of(run, released.config)]
    tasks = [Task.of(released, *cut_group(images, places, run, masks)) for run, places in parts]
    stacks, initial_bits, image_bits = [], 0.0, np.zeros(len(images))
    with tqdm(total=len(parts), desc="encoding", unit="group", disable=None, leave=False) as bar:
        for (_, places), (words, pushed) in zip(parts, helpers.map(push_apart, tasks)):
            stacks.append(words)
            initial_bits += pushed.initial_bits
            np.add.at(image_bits, [image for image, _ in places], pushed.tile_bits)
            bar.update()
    groups = tuple(len(places) for _, places in parts)
    return Words(b"".join(stacks), groups, len(groups), initial_bits, image_bits, tuple(map(len, stacks)))


@dataclass(frozen=True)
class Task:
    """A group on a stack of its own, for any process that has the model's folder."""

    folder: str
    device: str
    coded_mask: np.ndarray  # (B, 1 or 2, h, w) bool
    x: np.ndarray | None  # (B, 3, h, w) uint8, to be coded
    words: bytes = b""  # to be decoded

    @classmethod
    def of(cls, released: Released, x: np.ndarray | None, coded_mask: np.ndarray, words: bytes = b"") -> Task:
        return cls(str(released.folder), released.device.type, coded_mask, x, words)

    def load(self) -> tuple[Released, Group]:
        released = load_released(self.folder, self.device)
        return released, Group(torch.from_numpy(self.coded_mask).to(released.device))


@plain()
def push_apart(task: Task) -> tuple[bytes, Pushed]:
    """A group's words, and what it cost."""
    (released, group), stack = task.load(), Stack()
    assert task.x is not None
    x = torch.from_numpy(task.x).to(released.device).float()
    pushed = push_group(released.model, released.tables, group, x, stack, direct=True)
    assert pushed is not None  # it borrows nothing
    return stack.words().astype("<u4").tobytes(), pushed


@plain()
def pop_apart(task: Task) -> np.ndarray:
    """A group's tiles (B, 3, h, w) uint8; raises FormatError if the words are none of theirs."""
    (released, group), stack = task.load(), Stack(np.frombuffer(task.words, "<u4"), FREE)
    x = pop_group(released.model, released.tables, group, stack, direct=True)
    if not stack.empty:
        raise FormatError("payload: bits are left over after the last pixel")
    tiles: np.ndarray = x.to(torch.uint8).cpu().numpy()
    return tiles


def groups_of(run: Run, config: ModelConfig) -> Iterator[list[Place]]:
    """The tiles of a run in its largest groups: those that are coded apart."""
    size = largest_group(run, config)
    for start in range(0, len(run.places), size):
        yield run.places[start : start + size]


def encode_chained(
    images: Sequence[np.ndarray], masks: Sequence[Mask], runs: Sequence[Run], released: Released
) -> Words:
    """In growing groups on one stack, from which each borrows the bits that the ones before it pushed."""
    starts = np.cumsum([0, *(len(run.places) for run in runs)])
    total = int(starts[-1])
    stack, initial_bits, direct_groups, image_bits = Stack(), 0.0, 0, np.zeros(len(images))
    price_bits = 0.0  # that a pixel of the last group borrowed
    with tqdm(total=total, desc="encoding", unit="tile", disable=None, leave=False) as bar:

        def run_at(start: int) -> int:
            return int(np.searchsorted(starts, start, "right")) - 1

        def room(start: int) -> tuple[int, int]:
            n = run_at(start)
            same, largest = int(starts[n + 1]) - start, largest_group(runs[n], released.config)
            if price_bits:
                largest = min(largest, power_of_two(stack.bits / (price_bits * area(runs[n]))))
            return same, largest

        def attempt(start: int, size: int, direct: bool) -> bool:
            nonlocal stack, initial_bits, direct_groups, price_bits
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
            price_bits = pushed.borrowed_bits / (size * area(runs[n]))
            np.add.at(image_bits, [image for image, _ in places], pushed.tile_bits - pushed.initial_bits / size)
            bar.update(size)
            return True

        groups = code_groups(total, room, attempt)
    # All tiles borrow what the first ones paid for; without these, the next ones would have to pay.
    np.add.at(image_bits, [image for run in runs for image, _ in run.places], initial_bits / total)
    payload = stack.words().astype("<u4").tobytes()
    return Words(payload, tuple(groups), direct_groups, initial_bits, image_bits)


def area(run: Run) -> int:
    """Pixels of a tile."""
    return run.tile[0] * run.tile[1]


def power_of_two(limit: float) -> int:
    """The largest up to a limit, and at least 1."""
    return 1 << max(0, int(limit).bit_length() - 1)


def largest_group(run: Run, config: ModelConfig) -> int:
    """Tiles of the largest groups of a run; those of a causal model are about equal."""
    pixels = area(run)
    if not config.causal:
        return max(1, GROUP_PIXELS // pixels)
    whole = len(run.places)
    if whole * pixels < SHARED_PIXELS:
        return max(1, whole)
    pairs = -(-whole // (2 * max(1, WAVE_PIXELS // pixels)))
    return -(-whole // (2 * pairs))


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
    grids = ((shape, config.tile_of(*shape[:2])) for shape in shapes)
    return sum(-(-shape[0] // tile[0]) * -(-shape[1] // tile[1]) for shape, tile in grids)


def decode(
    shapes: Sequence[Shape], masks: Sequence[Mask], groups: Sequence[int], direct: int | None, stacks: Sequence[bytes],
    released: Released, helpers: Helpers = ALONE,
) -> list[np.ndarray]:
    """The images (H, W, 1 or 3) uint8 of the words of some stacks: one for each group where ``direct`` is None, else
    one for all. Raises FormatError if the model cannot have written them."""
    if check_size(shapes, released.config) != sum(groups) or len(stacks) != (len(groups) if direct is None else 1):
        raise FormatError("table: the groups do not fit the images")
    parts = list(placed(runs_of(shapes, released.config), groups))
    if sum(len(places) * area(run) for (run, places), words in zip(parts, stacks) if not words) > FREE:
        raise FormatError("payload: no words for so many pixels")
    try:
        images = [np.empty(shape, np.uint8) for shape in shapes]
    except (ValueError, MemoryError) as error:
        raise FormatError("table: impossible sizes of images") from error
    if direct is None:
        found = decode_apart(parts, masks, stacks, released, helpers if released.device.type == "cpu" else ALONE)
    elif released.config.causal:
        raise FormatError("table: each of this model's groups has a stack")
    else:
        found = decode_chained(parts, masks, direct, stacks[0], released)
    for places, tiles in found:
        for tile, (image, box) in zip(tiles, places):
            paste_tile(images[image], box, tile)
    return images


def placed(runs: Sequence[Run], groups: Sequence[int]) -> Iterator[tuple[Run, list[Place]]]:
    """The tiles of each group; raises FormatError if they are not of one run, or too many."""
    left = list(runs)
    start = 0
    for size in groups:
        while left and start == len(left[0].places):
            left.pop(0)
            start = 0
        if not left or start + size > len(left[0].places):
            raise FormatError("table: the groups do not fit the images")
        run = left[0]
        if size > 1 and size * area(run) > WAVE_PIXELS:
            raise FormatError(f"table: a group of {size} tiles is larger than any that is written")
        yield run, run.places[start : start + size]
        start += size


def decode_apart(
    parts: Sequence[tuple[Run, list[Place]]], masks: Sequence[Mask], stacks: Sequence[bytes], released: Released,
    helpers: Helpers,
) -> Iterator[tuple[list[Place], np.ndarray]]:
    tasks = Pops(parts, masks, stacks, released)
    with tqdm(total=len(parts), desc="decoding", unit="group", disable=None, leave=False) as bar:
        for (_, places), tiles in zip(parts, helpers.map(pop_apart, tasks)):
            yield places, tiles
            bar.update()


@dataclass(frozen=True)
class Pops:
    """The tasks of groups on stacks of their own, each made when its turn comes."""

    parts: Sequence[tuple[Run, list[Place]]]
    masks: Sequence[Mask]
    stacks: Sequence[bytes]
    released: Released

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, n: int) -> Task:
        run, places = self.parts[n]
        return Task.of(self.released, None, mask_of(places, run, self.masks), self.stacks[n])


def decode_chained(
    parts: Sequence[tuple[Run, list[Place]]], masks: Sequence[Mask], direct: int, words: bytes, released: Released
) -> Iterator[tuple[list[Place], np.ndarray]]:
    stack = Stack(np.frombuffer(words, "<u4"), FREE)
    with tqdm(total=sum(len(places) for _, places in parts), desc="decoding", unit="tile", disable=None,
              leave=False) as bar:
        for n, (run, places) in reversed(list(enumerate(parts))):
            group = Group(torch.from_numpy(mask_of(places, run, masks)).to(released.device))
            x = pop_group(released.model, released.tables, group, stack, direct=n < direct)
            yield places, x.to(torch.uint8).cpu().numpy()
            bar.update(len(places))
    if not stack.empty:
        raise FormatError("payload: bits are left over after the last pixel")
