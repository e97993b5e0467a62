"""Images as people have them, small: crops of photographs, what cameras and scanners made of them, screenshots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from image_samples import saved
from PIL import Image, ImageDraw

from vdvae_codec.images.files import read_rgb

COAST = Path(__file__).parents[2] / "examples" / "coast.png"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "counts", "0123456789", "pixels"]


def coast_crops(side: int = 128) -> list[np.ndarray]:
    """All crops (side, side, 3) uint8 of a photograph, in raster order."""
    coast = read_rgb(COAST)
    corners = ((y, x) for y in range(0, 512, side) for x in range(0, 768, side))
    return [np.ascontiguousarray(coast[y : y + side, x : x + side]) for y, x in corners]


def screenshot(seed: int, width: int = 240, height: int = 160) -> np.ndarray:
    """A window with a title bar, buttons, text and a graph, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (240, 240, 244))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width, 18), (40, 60, 110))
    draw.text((6, 3), f"window {seed}", (255, 255, 255))
    for n in range(4):
        draw.rectangle((8 + 52 * n, 24, 52 + 52 * n, 40), (210, 214, 220), (120, 120, 130))
        draw.text((12 + 52 * n, 26), str(rng.choice(WORDS)), (20, 20, 20))
    for y in range(46, 100, 12):
        draw.text((8, y), " ".join(rng.choice(WORDS, 6)), (20, 20, 20))
    heights = height - 10 - rng.integers(0, 40, 12)
    draw.line([(8 + 20 * n, int(y)) for n, y in enumerate(heights)], (200, 40, 40), 2)
    return np.asarray(image)


def png(pixels: np.ndarray, **options: object) -> bytes:
    """The pixels (H, W, C) as a PNG file."""
    return saved(pixels[..., 0] if pixels.shape[2] == 1 else pixels, "PNG", **options)
