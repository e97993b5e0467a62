"""What a model has learnt, as pictures: images drawn from it, and reconstructions of which it keeps only a part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vdvae_codec.model.distributions.gaussian import Gaussian
from vdvae_codec.model.distributions.logistics import Mixture
from vdvae_codec.model.layers.base import Acts, PixelLayer, State, Visitor
from vdvae_codec.model.layers.causal import CausalLayer
from vdvae_codec.model.layers.latent import LatentLayer
from vdvae_codec.model.vdvae import VDVAE

BATCH_PIXELS = 2**18  # of the images drawn at a time: bounds the memory
GAP = 2  # pixels between the images of a sheet


class Sample(Visitor):
    """Visitor that draws from the prior, at a temperature: sigma is multiplied by it (VDVAE, arXiv 2011.10650)."""

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        return torch.where(layer.active[:, None, None], p.sample(self.temperature), p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        drawn = p.sample(self.temperature)
        layer.plane(x).copy_(drawn if layer.channels == 3 else drawn[:, p.order[:1]])

    def causal(self, layer: CausalLayer, state: State) -> None:
        for wave, rows, pixels in layer.waves(state):
            drawn = layer.distribution(rows).sample(self.temperature)[0, :, 0]  # (3, N)
            pixels.put(wave, (drawn if layer.channels == 3 else drawn[:1].expand(3, -1)).t())


class Reconstruct(Sample):
    """Visitor that keeps what layers of at least a ``stride`` say of an image, and draws all that is finer.

    Kept latents are the posterior's means. Kept pixel layers are those of ``known`` (B, 3, H, W); None draws them all.
    """

    def __init__(self, acts: Acts, stride: int, known: Tensor | None, temperature: float):
        super().__init__(temperature)
        self.acts, self.stride, self.known = acts, stride, known

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if layer.stride < self.stride:
            return super().latent(layer, p, posterior)
        return torch.where(layer.active[:, None, None], posterior(self.acts).mean, p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        if self.known is None or layer.stride < self.stride:
            super().pixels(layer, p, x)
        else:
            layer.plane(x).copy_(layer.plane(self.known))

    def causal(self, layer: CausalLayer, state: State) -> None:
        if self.known is None or layer.stride < self.stride:
            super().causal(layer, state)
        else:
            layer.plane(state.x).copy_(layer.plane(self.known))


@torch.no_grad()
def samples(model: VDVAE, count: int, height: int, width: int, temperature: float) -> Tensor:
    """Draws images (count, 3, height, width) float32 in pixel levels, G, R, B, with torch's global generator.

    Sides that are no multiples of the largest stride are drawn larger and cropped at the bottom and on the right.
    """
    multiple = model.config.multiple
    sides = [-(-side // multiple) * multiple for side in (height, width)]
    batch = max(1, BATCH_PIXELS // math.prod(sides))
    drawn = []
    for begin in range(0, count, batch):
        x = torch.zeros(min(batch, count - begin), 3, *sides, device=model.bias.device)
        model.walk(x, Sample(temperature))
        drawn.append(x[:, :, :height, :width])
    return torch.cat(drawn)


@torch.no_grad()
def reconstructions(model: VDVAE, x: Tensor, keep_pixels: bool, temperature: float) -> Iterator[Tensor]:
    """For every stride from coarse to fine: images x (B, 3, H, W) as the layers down to that stride know them.

    Their latents are kept and, if ``keep_pixels``, their pixels; all that is finer is drawn. This is the figure of
    VDVAE (arXiv 2011.10650) with "reconstructions of samples" by the latents down to a resolution. A model whose pixel
    layers are interleaved says more: with pixels, the last of them is x itself.
    """
    acts = model.encode(x)
    for stride in model.config.strides:
        image = torch.zeros_like(x)
        model.walk(image, Reconstruct(acts, stride, x if keep_pixels else None, temperature))
        yield image


def sheet(rows: Sequence[Tensor], left: Sequence[str] = (), top: Sequence[str] = ()) -> np.ndarray:
    """Rows of images (N, 3, h, w) in pixel levels, G, R, B, as one RGB picture (H, W, 3) uint8.

    ``left`` and ``top`` label rows and columns, which are at least as large as their labels.
    """
    font = ImageFont.load_default()

    def extent(labels: Sequence[str]) -> tuple[int, int]:
        """Width and height that hold every label."""
        boxes = [font.getbbox(label) for label in labels]
        return (max(int(b[2]) for b in boxes) + 3, max(int(b[3]) for b in boxes) + 3) if labels else (0, 0)

    (x0, label_height), (label_width, y0) = extent(left), extent(top)
    height, width = max(rows[0].shape[2], label_height), max(rows[0].shape[3], label_width)
    columns = max(len(row) for row in rows)
    size = (x0 + columns * (width + GAP) - GAP, y0 + len(rows) * (height + GAP) - GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for n, label in enumerate(top):
        draw.text((x0 + n * (width + GAP), 0), label, "black", font)
    for m, row in enumerate(rows):
        if left:
            draw.text((0, y0 + m * (height + GAP)), left[m], "black", font)
        for n, image in enumerate(row[:, [1, 0, 2]].permute(0, 2, 3, 1).byte().cpu().numpy()):
            picture.paste(Image.fromarray(image), (x0 + n * (width + GAP), y0 + m * (height + GAP)))
    return np.asarray(picture)


def square(images: Tensor) -> np.ndarray:
    """Images (N, 3, h, w) as a sheet of about as many rows as columns."""
    return sheet(torch.split(images, math.ceil(math.sqrt(len(images)))))
