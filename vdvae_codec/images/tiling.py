"""Images cut into tiles and put together again: the only place that turns R, G, B to the order that models code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

PIXELS_OF_A_STEP, FEWEST_STEPS = 600, 400
FILL = 128  # level of the pixels beyond an image's border, which are not coded
Box = tuple[int, int, int, int]  # y0, x0, y1, x1
Place = tuple[int, Box]  # number of an image, and a box of it

_SWAPPED = [1, 0, 2]  # R, G, B to G, R, B and back


def tile_grid(height: int, width: int, largest: int, multiple: int) -> tuple[int, int]:
    """Height and width of about equal tiles that cover an image.

    Sides are multiples of ``multiple`` and, if ``largest`` is such a multiple, at most ``largest``.
    """

    def side(total: int) -> int:
        count = -(-total // largest)
        return -(-total // (count * multiple)) * multiple

    return side(height), side(width)


def wave_tile(height: int, width: int, largest: int, multiple: int) -> tuple[int, int]:
    """Likewise of tiles that are decoded in wavefronts: the larger the image, the larger they are.

    A tile takes about its width and twice its height of steps, in each of which all tiles should have enough pixels
    for the work of a step. Borders cost about as much on top as on the left.
    """
    steps = min(max(height * width // PIXELS_OF_A_STEP, FEWEST_STEPS), 4 * largest)
    rows, columns = 3 * steps // 10, 4 * steps // 10

    def side(total: int, wanted: int) -> int:
        count = -(-total // max(wanted, multiple))
        return -(-total // (count * multiple)) * multiple

    return side(height, rows), side(width, columns)


def tile_boxes(height: int, width: int, tile: tuple[int, int]) -> list[Box]:
    """Boxes (y0, x0, y1, x1) of the tiles of ``tile`` = (height, width) in raster order, clipped to the image."""
    corners = itertools.product(range(0, height, tile[0]), range(0, width, tile[1]))
    return [(y, x, min(y + tile[0], height), min(x + tile[1], width)) for y, x in corners]


def in_image(boxes: Sequence[Box], tile: tuple[int, int]) -> np.ndarray:
    """(B, th, tw) bool: which pixels of tiles lie in the image that their boxes were clipped to."""
    mask = np.zeros((len(boxes), *tile), bool)
    for n, (y0, x0, y1, x1) in enumerate(boxes):
        mask[n, : y1 - y0, : x1 - x0] = True
    return mask


def cut_tiles(
    images: Sequence[np.ndarray], places: Sequence[Place], tile: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of images (H, W, 1 or 3) uint8, all grey or all RGB, and which of their pixels are ``in_image``.

    (B, 3, th, tw) uint8: G, R, B or grey three times, FILL beyond an image's border; (B, th, tw) bool.
    """
    x = np.full((len(places), *tile, 3), FILL, np.uint8)
    for n, (image, (y0, x0, y1, x1)) in enumerate(places):
        x[n, : y1 - y0, : x1 - x0] = images[image][y0:y1, x0:x1]
    grey = images[places[0][0]].shape[2] == 1
    x = x if grey else x[..., _SWAPPED]
    return x.transpose(0, 3, 1, 2), in_image([box for _, box in places], tile)


def paste_tile(image: np.ndarray, box: Box, tile: np.ndarray) -> None:
    """Writes what ``cut_tiles`` cut, (3, th, tw) uint8, to its box of an image (H, W, 1 or 3) uint8.

    A grey image takes the first channel.
    """
    y0, x0, y1, x1 = box
    channels = _SWAPPED if image.shape[2] == 3 else [0]
    image[y0:y1, x0:x1] = tile[channels, : y1 - y0, : x1 - x0].transpose(1, 2, 0)
