"""What a standard conversion to RGB did to an image's colours, inverted without loss.

Most photographs were once kept as light and two colour differences, in whole numbers: by JPEG, WebP, video, PhotoCD.
Decoders turn these into RGB by a fixed formula, whose results are few of all RGB values: one in 4.2 for JPEG, one in
9.4 for PhotoCD. An image that (nearly) wholly consists of such values is coded by its YCC, as G = Y, R = Y + Cr and
B = Y + Cb, the differences about zero: an image like others, of less contrast, from which the formula gives the pixels
back. Where the formula did not clip nothing wraps around: R = Y + s Cr makes Y + Cr lie between Y and R for s >= 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vdvae_codec.errors import FormatError

MIN_COLOURS = 64  # other than greys, among the sample: drawings happen to fit
MAX_ODD = 1 / 256  # share of pixels that may follow no formula; they are stored as they are
SAMPLE = 4096  # pixels that are tried first
AT_ONCE = 1 << 16  # YCC values that are tried together: bounds the memory, and keeps it in the caches
LIKELY = 0.9  # share of the sample's colours that must fit: chance fits a quarter
_ODD_BYTES = 7  # of side information for a pixel that follows no formula

Ycc = np.ndarray  # (..., 3) int32: Y, Cb, Cr as the standard stores them, 0..255


def jpeg(ycc: Ycc) -> np.ndarray:
    """JFIF (ITU-T T.871), in the integers of libjpeg and libjpeg-turbo (jdcolor.c)."""
    y, cb, cr = ycc[..., 0], ycc[..., 1] - 128, ycc[..., 2] - 128
    return np.stack([
        y + (91881 * cr + 32768 >> 16), y + (-22554 * cb - 46802 * cr + 32768 >> 16), y + (116130 * cb + 32768 >> 16),
    ], -1)  # fmt: skip


def webp(ycc: Ycc) -> np.ndarray:
    """BT.601 with light of 16 to 235, in the integers of libwebp (dsp/yuv.h): what lossy WebP decodes to."""
    y, u, v = (19077 * ycc[..., 0] >> 8), ycc[..., 1], ycc[..., 2]
    return np.stack([
        y + (26149 * v >> 8) - 14234 >> 6, y - (6419 * u >> 8) - (13320 * v >> 8) + 8708 >> 6,
        y + (33050 * u >> 8) - 17685 >> 6,
    ], -1)  # fmt: skip


def photocd(ycc: Ycc) -> np.ndarray:
    """Kodak's PhotoCD YCC (Giorgianni and Madden, Digital Color Management), cut to whole numbers.

    The formula is the standard's. The order of the cuts is that of the program by which the well-known 24 images of
    Kodak were once decoded, and was found from these images.
    """
    y, c1, c2 = 13584 * ycc[..., 0], 22179 * (ycc[..., 1] - 156), 18215 * (ycc[..., 2] - 137)
    green = y - 1940 * (c1 // 10000) - 5090 * (c2 // 10000)
    return np.stack([y + c2, green, y + c1], -1) // 10000


@dataclass(frozen=True)
class Conversion:
    """The transform from the RGB that a formula gave to YCC.

    Its side information is of the pixels that the formula does not give: how many pixels each lies behind the one
    before (uint32, little-endian), then R, G, B of each.
    """

    code: int
    name: str
    formula: Callable[[Ycc], np.ndarray]
    middle: tuple[int, int]  # Cb and Cr of greys

    def forward(self, pixels: np.ndarray) -> tuple[np.ndarray, bytes] | None:
        """YCC of pixels (H, W, 3) uint8, as Y + Cr, Y, Y + Cb modulo 256; None unless nearly all follow the formula."""
        if pixels.shape[2] != 3 or not self._is_likely(pixels.reshape(-1, 3)):
            return None
        found, where = colours_in(pixels.reshape(-1, 3))
        ycc, fits = self.to_ycc(found)
        odd = np.flatnonzero(~fits[where])
        if len(odd) > MAX_ODD * len(where):
            return None
        y, cb, cr = (ycc - [0, *self.middle]).T
        coded = np.stack([y + cr, y, y + cb], -1).astype(np.uint8)[where].reshape(pixels.shape)
        gaps = np.diff(odd, prepend=0).astype("<u4")
        return coded, gaps.tobytes() + pixels.reshape(-1, 3)[odd].tobytes()

    def inverse(self, coded: np.ndarray, side_info: bytes) -> np.ndarray:
        """What ``forward`` was given. Raises FormatError."""
        count, rest = divmod(len(side_info), _ODD_BYTES)
        if rest or coded.shape[2] != 3:
            raise FormatError(f"side_info: {self.name} is damaged")
        odd = np.cumsum(np.frombuffer(side_info, "<u4", count).astype(np.int64))
        if count and odd[-1] >= coded.shape[0] * coded.shape[1]:
            raise FormatError(f"side_info: {self.name} has a pixel outside of the image")
        red, y, blue = coded.reshape(-1, 3).T
        cb, cr = (c - y + np.uint8(middle) for c, middle in zip((blue, red), self.middle))  # modulo 256
        pixels = self.to_rgb(np.stack([y, cb, cr], -1).astype(np.int32)).astype(np.uint8)
        pixels[odd] = np.frombuffer(side_info, np.uint8, 3 * count, 4 * count).reshape(-1, 3)
        return pixels.reshape(coded.shape)

    def to_rgb(self, ycc: Ycc) -> np.ndarray:
        """(..., 3) YCC to (..., 3) R, G, B, 0..255."""
        return self.formula(ycc).clip(0, 255)

    def to_ycc(self, rgb: np.ndarray) -> tuple[Ycc, np.ndarray]:
        """YCC (N, 3) near that of ``rgb`` (N, 3), and (N,) bool: which of them give exactly these colours."""
        nearest = self._nearest(rgb)
        ycc, fits = nearest.clip(0, 255), np.zeros(len(rgb), bool)
        clipped = ((rgb == 0) | (rgb == 255)).any(-1)
        for moves in (*NEAR, *FAR):
            left = np.flatnonzero(~fits if len(moves) <= len(NEAR[-1]) else clipped & ~fits)
            for start in range(0, len(left), AT_ONCE // len(moves)):
                some = left[start : start + AT_ONCE // len(moves)]
                tried = nearest[some, None] + moves  # (n, moves, 3)
                right = (self.to_rgb(tried) == rgb[some, None]).all(-1) & (tried == tried.clip(0, 255)).all(-1)
                found = right.any(-1)
                ycc[some[found]] = tried[found, right[found].argmax(-1)]
                fits[some] = found
        return ycc, fits

    def _nearest(self, rgb: np.ndarray) -> Ycc:
        """YCC (N, 3) of ``rgb`` (N, 3) by the formula's slopes about grey, rounded and not clipped."""
        origin = np.array([[128, *self.middle]])
        around = np.concatenate([origin - 32 * np.eye(3, dtype=int), origin + 32 * np.eye(3, dtype=int)])
        slopes = (self.formula(around[3:]) - self.formula(around[:3])).T / 64  # (RGB, YCC)
        nearest: Ycc = np.rint(origin + (rgb - self.formula(origin)) @ np.linalg.inv(slopes).T).astype(np.int32)
        return nearest

    def _is_likely(self, rgb: np.ndarray) -> bool:
        """Whether nearly all of a sample of (N, 3) uint8 that is not all but grey follows the formula."""
        colours = np.unique(rgb[:: max(1, len(rgb) // SAMPLE)], axis=0).astype(np.int32)
        coloured = np.ptp(colours, axis=1) > 0
        return int(coloured.sum()) >= MIN_COLOURS and float(self.to_ycc(colours)[1].mean()) >= LIKELY


def colours_in(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colours (K, 3) int32 among ``rgb`` (N, 3) uint8, in their order, and (N,) which of them each pixel has."""
    red, green, blue = rgb.astype(np.int32).T
    keys = red << 16 | green << 8 | blue
    present = np.zeros(1 << 24, bool)  # faster than sorting the pixels
    present[keys] = True
    found = np.flatnonzero(present)
    number = np.empty(1 << 24, np.int32)
    number[found] = np.arange(len(found))
    return np.stack([found >> 16, found >> 8 & 255, found & 255], -1).astype(np.int32), number[keys]


def _moves(light: int, colour: int) -> Ycc:
    """All moves of so many levels at most, the shortest first."""
    reach = (range(-light, light + 1), range(-colour, colour + 1), range(-colour, colour + 1))
    return np.array(sorted(itertools.product(*reach), key=lambda move: sum(m * m for m in move)), np.int32)


NEAR = np.split(_moves(1, 1), [1, 7])  # tried in turn where nothing fitted yet
FAR = (_moves(3, 2), _moves(10, 5))  # and where colours were clipped
CONVERSIONS = (
    Conversion(1, "JPEG", jpeg, (128, 128)),
    Conversion(2, "WebP", webp, (128, 128)),
    Conversion(3, "PhotoCD", photocd, (156, 137)),
)
