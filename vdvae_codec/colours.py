"""What a standard conversion to RGB did to an image's colours, undone without loss.

Most photographs were once kept as light and two colour differences, in whole steps: by JPEG, WebP, video, PhotoCD.
Decoders turn these into RGB by a fixed formula, whose results are few of all RGB values: one in 4.2 for JPEG, one in
9.4 for PhotoCD. An image that (nearly) wholly consists of such values is coded by its steps, as G = Y, R = Y + Cr and
B = Y + Cb, the differences about zero: an image like others, of less contrast, from which the formula gives the pixels
back. Where the formula did not clip nothing wraps around: R = Y + s Cr makes Y + Cr lie between Y and R for s >= 1.

Stretched tones leave levels out as well: where a channel lacks many levels in its midst, the others move together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vdvae_codec.errors import FormatError
from vdvae_codec.images import quick_size

MIN_PIXELS = 64 * 64  # smaller images have too few colours to tell
MIN_COLOURS = 64  # other than greys, among the sample: drawings happen to fit
MAX_ODD = 1 / 256  # share of pixels that may follow no formula; they are stored as they are
SAMPLE = 4096  # pixels that are tried first
AT_ONCE = 1 << 18  # steps that are tried together: bounds the memory
STRETCHED = 255  # code of stretched tones in files
NEIGHBOURS = 8  # levels on either side, among which the missing ones count
MIN_GAIN = 0.05  # bits per sub-pixel that missing levels promise
LIKELY = 0.9  # share of their colours that must fit: chance fits a quarter

Steps = np.ndarray  # (..., 3) int64: Y, Cb, Cr as the standard stores them, 0..255


def jpeg(steps: Steps) -> np.ndarray:
    """JFIF (ITU-T T.871), in the integers of libjpeg and libjpeg-turbo (jdcolor.c)."""
    y, cb, cr = steps[..., 0], steps[..., 1] - 128, steps[..., 2] - 128
    return np.stack([
        y + (91881 * cr + 32768 >> 16), y + (-22554 * cb - 46802 * cr + 32768 >> 16), y + (116130 * cb + 32768 >> 16),
    ], -1)  # fmt: skip


def webp(steps: Steps) -> np.ndarray:
    """BT.601 with light of 16 to 235, in the integers of libwebp (dsp/yuv.h): what lossy WebP decodes to."""
    y, u, v = (19077 * steps[..., 0] >> 8), steps[..., 1], steps[..., 2]
    return np.stack([
        y + (26149 * v >> 8) - 14234 >> 6, y - (6419 * u >> 8) - (13320 * v >> 8) + 8708 >> 6,
        y + (33050 * u >> 8) - 17685 >> 6,
    ], -1)  # fmt: skip


def photocd(steps: Steps) -> np.ndarray:
    """Kodak's PhotoCD YCC (Giorgianni and Madden, Digital Color Management), cut to whole levels.

    The formula is the standard's. The order of the cuts is that of the program by which the well-known 24 images of
    Kodak were once decoded, and was found from these images.
    """
    y, c1, c2 = 13584 * steps[..., 0], 22179 * (steps[..., 1] - 156), 18215 * (steps[..., 2] - 137)
    green = y - 1940 * (c1 // 10000) - 5090 * (c2 // 10000)
    return np.stack([y + c2, green, y + c1], -1) // 10000


@dataclass(frozen=True)
class Conversion:
    """A formula, and the steps that stand for no colour."""

    name: str
    formula: Callable[[Steps], np.ndarray]
    middle: tuple[int, int]

    def to_rgb(self, steps: Steps) -> np.ndarray:
        """(..., 3) steps to (..., 3) R, G, B, 0..255."""
        return self.formula(steps).clip(0, 255)

    def to_steps(self, rgb: np.ndarray) -> tuple[Steps, np.ndarray]:
        """Steps (N, 3) near those of ``rgb`` (N, 3), and (N,) bool: which of them give exactly these colours."""
        origin = np.array([[128, *self.middle]])
        around = np.concatenate([origin - 32 * np.eye(3, dtype=int), origin + 32 * np.eye(3, dtype=int)])
        slopes = (self.formula(around[3:]) - self.formula(around[:3])).T / 64  # (RGB, steps)
        nearest = np.rint(origin + (rgb - self.formula(origin)) @ np.linalg.inv(slopes).T).astype(np.int64)
        steps, fits = nearest.clip(0, 255), np.zeros(len(rgb), bool)
        clipped = ((rgb == 0) | (rgb == 255)).any(-1)
        for moves in (NEAR, FAR, FARTHER):
            left = np.flatnonzero(~fits if moves is NEAR else clipped & ~fits)
            for start in range(0, len(left), AT_ONCE // len(moves)):
                some = left[start : start + AT_ONCE // len(moves)]
                tried = nearest[some, None] + moves  # (n, moves, 3)
                right = (self.to_rgb(tried) == rgb[some, None]).all(-1) & (tried == tried.clip(0, 255)).all(-1)
                fits[some] = right.any(-1)
                best = tried[np.arange(len(some)), right.argmax(-1)]
                steps[some[fits[some]]] = best[fits[some]]
        return steps, fits


def _moves(light: int, colour: int) -> Steps:
    """All moves of so many steps at most, the shortest first."""
    reach = (range(-light, light + 1), range(-colour, colour + 1), range(-colour, colour + 1))
    return np.array(sorted(itertools.product(*reach), key=lambda move: sum(m * m for m in move)))


NEAR, FAR, FARTHER = _moves(1, 1), _moves(3, 2), _moves(10, 5)
CONVERSIONS = (  # a conversion's code in files is its position: append only
    Conversion("JPEG", jpeg, (128, 128)),
    Conversion("WebP", webp, (128, 128)),
    Conversion("PhotoCD", photocd, (156, 137)),
)


def undo(pixels: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Pixels (H, W, C) uint8 to those that are coded, of the same shape, and how ``redo`` gets back.

    No bytes: they are the same.
    """
    if pixels.shape[0] * pixels.shape[1] < MIN_PIXELS:
        return pixels, b""
    coded, how = undo_conversion(pixels) if pixels.shape[2] == 3 else (pixels, b"")
    return (coded, how) if how else undo_stretching(pixels)


def undo_conversion(pixels: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Pixels (H, W, 3) to steps; the bytes are the conversion's code, how the steps are mirrored (1 top to bottom, 2
    left to right), then positions and R, G, B of the pixels that the conversion does not give."""
    red, green, blue = pixels.reshape(-1, 3).astype(np.int32).T
    keys = red << 16 | green << 8 | blue
    sample = np.unique(keys[:: max(1, len(keys) // SAMPLE)])
    if np.ptp(_colours(sample), axis=1).astype(bool).sum() < MIN_COLOURS:
        return pixels, b""
    for code, conversion in enumerate(CONVERSIONS):
        if conversion.to_steps(_colours(sample))[1].mean() < LIKELY:
            continue
        table = np.zeros(1 << 24, np.int32)  # faster than sorting the pixels
        table[keys] = 1
        found = np.flatnonzero(table)
        table[found] = np.arange(len(found))
        where = table[keys]  # of a pixel's colour among those found
        steps, fits = conversion.to_steps(_colours(found))
        odd = np.flatnonzero(~fits[where])
        if len(odd) > MAX_ODD * len(keys):
            continue
        y, cb, cr = (steps - [0, *conversion.middle]).T
        coded = np.stack([y + cr, y, y + cb], -1).astype(np.uint8)[where].reshape(pixels.shape)
        flips = sum(1 << axis for axis in (0, 1) if between_evens(coded, axis))
        gaps = np.diff(odd, prepend=0).astype("<u4")
        how = bytes([code, flips]) + gaps.tobytes() + pixels.reshape(-1, 3)[odd].tobytes()
        return mirrored(coded, flips), how
    return pixels, b""


def between_evens(coded: np.ndarray, axis: int) -> bool:
    """Whether colours lie between their neighbours at even places along an axis, rather than at odd ones, which the
    codec codes later: then the image is mirrored, if that makes its even places odd."""
    planes = coded.swapaxes(0, axis).astype(np.int16)
    if len(planes) % 2 or len(planes) < 4:
        return False
    colours = planes[..., ::2] - planes[..., 1:2]
    fits = (colours[:-2] + colours[2:] + 1 >> 1) == colours[1:-1]
    return bool(fits[1::2].mean() > fits[::2].mean())


def mirrored(pixels: np.ndarray, flips: int) -> np.ndarray:
    return np.ascontiguousarray(pixels[:: -1 if flips & 1 else 1, :: -1 if flips & 2 else 1])


def undo_stretching(pixels: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Pixels (H, W, C) with the missing levels left out, if a quick classical coder finds that they matter; the bytes
    are STRETCHED and, of each channel, the first level and 256 bits: which levels it has."""
    channels, gain = [], 0.0
    for plane in pixels.reshape(-1, pixels.shape[2]).T:
        counts = np.bincount(plane, minlength=256)
        present = (counts > 0).astype(float)
        low, high = np.flatnonzero(counts)[[0, -1]]
        possible = np.zeros(256)
        possible[low : high + 1] = 1
        window = np.ones(2 * NEIGHBOURS + 1)
        share = np.convolve(present, window, "same") / np.convolve(possible, window, "same").clip(1)
        gain -= float(counts @ np.log2(share.clip(1e-9))) / pixels.size
        first = round(int(low) * present.sum() / (high - low + 1))  # so that tones keep their proportions
        channels.append((first, counts > 0))
    if gain < MIN_GAIN:
        return pixels, b""
    tables = np.stack([(np.cumsum(present) - 1 + first).clip(0) for first, present in channels]).astype(np.uint8)
    coded = np.stack([table[pixels[..., c]] for c, table in enumerate(tables)], -1)
    if quick_size(coded) > (1 - MIN_GAIN / 8) * quick_size(pixels):
        return pixels, b""
    return coded, bytes([STRETCHED]) + b"".join(
        bytes([first]) + np.packbits(present).tobytes() for first, present in channels
    )


def redo_stretching(coded: np.ndarray, how: bytes) -> np.ndarray:
    """What ``undo_stretching`` was given. Raises FormatError."""
    if len(how) != 1 + 33 * coded.shape[2]:
        raise FormatError("colours: damaged")
    planes = []
    for c, start in enumerate(range(1, len(how), 33)):
        levels = np.flatnonzero(np.unpackbits(np.frombuffer(how, np.uint8, 32, start + 1)))
        place = coded[..., c].astype(int) - how[start]
        if place.min() < 0 or place.max() >= len(levels):
            raise FormatError("colours: a level that the channel does not have")
        planes.append(levels[place].astype(np.uint8))
    return np.stack(planes, -1)


def _colours(keys: np.ndarray) -> np.ndarray:
    """(N,) of 24 bits to (N, 3) int64 R, G, B."""
    return np.stack([keys >> 16, keys >> 8 & 255, keys & 255], -1).astype(np.int64)


def name(how: bytes) -> str:
    """Of what was undone; empty: nothing."""
    if not how:
        return ""
    if how[0] == STRETCHED:
        return "stretched"
    return CONVERSIONS[how[0]].name if how[0] < len(CONVERSIONS) else f"conversion {how[0]}"


def redo(coded: np.ndarray, how: bytes) -> np.ndarray:
    """What ``undo`` was given: (H, W, C) uint8. Raises FormatError."""
    if not how:
        return coded
    if how[0] == STRETCHED:
        return redo_stretching(coded, how)
    if how[0] >= len(CONVERSIONS):
        raise FormatError(f"colours: conversion {how[0]} is unknown: a newer vdvae-codec is needed")
    count, rest = divmod(len(how) - 2, 7)
    if rest or coded.shape[2] != 3 or how[1] > 3:
        raise FormatError("colours: damaged")
    odd = np.cumsum(np.frombuffer(how, "<u4", count, 2).astype(np.int64))
    if count and odd[-1] >= coded.shape[0] * coded.shape[1]:
        raise FormatError("colours: a pixel outside of the image")
    conversion = CONVERSIONS[how[0]]
    red, light, blue = mirrored(coded, how[1]).reshape(-1, 3).astype(np.int64).T
    cb, cr = ((colour - light + middle) % 256 for colour, middle in zip((blue, red), conversion.middle))
    steps = np.stack([light, cb, cr], -1)
    pixels = conversion.to_rgb(steps).astype(np.uint8)
    pixels[odd] = np.frombuffer(how, np.uint8, 3 * count, 2 + 4 * count).reshape(-1, 3)
    return pixels.reshape(coded.shape)
