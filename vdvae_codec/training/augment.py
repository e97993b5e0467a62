"""What cameras, scanners and editors do to photographs before someone stores them without loss.

The pixels of a photograph bear the marks of its making: a sensor that saw one colour a pixel, colour stored at half the
resolution, grain, a resampling. A coder gains by seeing which of them it has before it, and learns to only if its
training images differ in them. All is done in float, and tones are changed only together with a resampling. The one
rounding but the last is that of stored colours, whose steps files of JPEG, video and PhotoCD show when decoded.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

AUGMENTS = ("turn", "photo", "mirror", "none")  # what crops go through; see ``data.Crops``
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601
# Levels of light, R - Y and B - Y for a step of what is stored.
JPEG, VIDEO, PHOTOCD = (1.0, 1.402, 1.772), (1.164, 1.596, 2.017), (1.3584, 1.8215, 2.2179)
SMOOTH = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def resize(image: np.ndarray, height: int, width: int, method: Image.Resampling) -> np.ndarray:
    """(h, w, C) float32 to (height, width, C)."""
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in image.transpose(2, 0, 1)]
    return np.stack([np.asarray(p.resize((width, height), method)) for p in planes], -1)


def blur(image: np.ndarray) -> np.ndarray:
    """(h, w, C) under the kernel (1, 2, 1) / 4 both ways."""
    p = np.pad(image, ((1, 1), (1, 1), (0, 0)), "reflect")
    p = p[:-2] + 2 * p[1:-1] + p[2:]
    out: np.ndarray = (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 16
    return out


def cut(image: np.ndarray, side: int, rng: np.random.Generator, step: int = 1) -> np.ndarray:
    """A random square of an image, at multiples of ``step``, or all of a side that is shorter."""
    y, x = (step * int(rng.integers(max(0, size - side) // step + 1)) for size in image.shape[:2])
    return image[y : y + side, x : x + side]


def rescaled(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Half as large where ``side`` pixels are left then, or up to twice; tones and saturation change a little."""
    if rng.random() < 0.5 and min(image.shape[:2]) >= 2 * side:
        method = Image.Resampling.BOX if rng.random() < 0.5 else Image.Resampling.LANCZOS
        image = resize(image, image.shape[0] // 2, image.shape[1] // 2, method)
    else:
        image, factor = cut(image, side, rng), rng.uniform(1.1, 2)
        height, width = (int(size * factor) for size in image.shape[:2])
        image = resize(image, height, width, SMOOTH[rng.integers(3)])
    grey = (image @ LUMA)[..., None]
    image = grey + np.float32(rng.uniform(0.6, 1.3)) * (image - grey)
    tones: np.ndarray = 255 * (image / 255).clip(0, 1) ** np.float32(rng.uniform(0.8, 1.25))
    return tones


def grainy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise that grows with the light or does not, of the colours or of the light alone, sharp or soft."""
    sigma = np.float32(np.exp(rng.uniform(np.log(0.3), np.log(8))))
    noise = rng.standard_normal((*image.shape[:2], 3 if rng.random() < 0.5 else 1), np.float32)
    if rng.random() < 0.5:
        noise = 2 * blur(noise)
    if rng.random() < 0.5:
        noise = noise * np.sqrt(image.clip(4, 255) / 128)
    out: np.ndarray = image + sigma * noise
    return out


def mosaiced(image: np.ndarray) -> np.ndarray:
    """Every pixel loses two colours, as under a Bayer filter; they are interpolated, red and blue relative to green."""
    mask = np.zeros_like(image)
    mask[0::2, 0::2, 0] = mask[1::2, 1::2, 2] = mask[0::2, 1::2, 1] = mask[1::2, 0::2, 1] = 1
    known = image * mask
    green = (known + 2 * blur(known) * (1 - mask))[..., 1:2]
    rest = green + 4 * blur((image - green) * mask)
    return np.concatenate([rest[..., :1], green, rest[..., 2:]], -1)


def halved(planes: np.ndarray, cosited: bool) -> np.ndarray:
    """Every second row: means of two of them, or those of the even ones under the kernel (1, 2, 1) / 4."""
    if not cosited:
        out: np.ndarray = (planes[0::2] + planes[1::2]) / 2
        return out
    p = np.pad(planes, ((1, 1), (0, 0), (0, 0)), "reflect")
    out = (p[:-2:2] + 2 * p[1:-1:2] + p[2::2]) / 4
    return out


def doubled(planes: np.ndarray, cosited: bool) -> np.ndarray:
    """Twice as many rows, by linear interpolation of what ``halved`` keeps."""
    before, after = np.concatenate([planes[:1], planes[:-1]]), np.concatenate([planes[1:], planes[-1:]])
    even, odd = (planes, (planes + after) / 2) if cosited else ((before + 3 * planes) / 4, (after + 3 * planes) / 4)
    return np.stack([even, odd], 1).reshape(-1, *planes.shape[1:])  # (h, 2, ...) -> (2 h, ...)


def recoloured(
    image: np.ndarray, scales: tuple[float, float, float], across: bool, down: bool, cosited: bool, smooth: bool = True,
    whole: bool = True, as_ycc: bool = False,
) -> np.ndarray:
    """Light and colour differences R - Y and B - Y (BT.601) in whole steps of ``scales`` levels, and back.

    The differences are kept at half the resolution ``across`` and ``down``; ``smooth`` interpolates them, to whole
    steps again if ``whole``. ``as_ycc`` leaves one level a step, as the codec sees such an image
    (``vdvae_codec.transforms.ycc``). The sides of the image are even.
    """
    grey = image @ LUMA
    light = (grey / scales[0]).round()
    steps = np.array(scales[1:], np.float32)
    colour = np.stack([image[..., 0] - grey, image[..., 2] - grey], -1) / steps  # (h, w, 2)
    for axis in (0,) * down + (1,) * across:
        colour = halved(colour.swapaxes(0, axis), cosited).swapaxes(0, axis)
    colour = colour.round()
    for axis in (0,) * down + (1,) * across:
        turned = colour.swapaxes(0, axis)
        colour = (doubled(turned, cosited) if smooth else turned.repeat(2, 0)).swapaxes(0, axis)
    colour = np.floor(colour + 0.5) if whole else colour
    if as_ycc:
        return np.stack([light + colour[..., 0], light, light + colour[..., 1]], -1).astype(np.float32)
    light, colour = light * scales[0], colour * steps
    red, blue = light + colour[..., 0], light + colour[..., 1]
    green = (light - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return np.stack([red, green, blue], -1).astype(np.float32)


def stored(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours as JPEG, video, PhotoCD and most cameras' files hold them, without their compression."""
    scales = (JPEG, VIDEO, PHOTOCD)[rng.integers(3)]
    across, whole = rng.random() < 0.85, rng.random() < 0.85
    return recoloured(
        image, scales, across, across and rng.random() < 0.8, bool(rng.integers(2)), rng.random() < 0.85, whole,
        as_ycc=whole and rng.random() < 0.9,
    )


def process(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random square (side, side, 3) of a photograph (H, W, 3) uint8, R, G, B, with a random history.

    Half are left as they are.
    """
    if rng.random() < 0.45:
        return cut(image, side, rng)
    margin = 8  # so that no filter's edge is seen
    out = image.astype(np.float32)
    out = rescaled(out, side + margin, rng) if rng.random() < 0.3 else out
    out = cut(out, side + margin, rng)
    if rng.random() < 0.3:
        out = grainy(out, rng)
    if rng.random() < 0.15:
        out = mosaiced(out)
    if rng.random() < 0.65:
        out = stored(out, rng)
    if rng.random() < 0.04:
        out = np.repeat((out @ LUMA)[..., None], 3, 2)
    step = 1 if rng.random() < 0.25 else 2  # most pictures keep the corner from which colours were halved
    return cut(out.round().clip(0, 255).astype(np.uint8), side, rng, step)
