"""What the latents of a model hold: KL by layer and resolution, and what an image costs and looks like if only the
top layers are kept.

    python examples/latents.py kl fashion-mnist fashion_mnist.npz:x_test -o kl.png
    python examples/latents.py kept fashion-mnist fashion_mnist.npz:x_test -o kept.png

For models in which one layer holds all pixels. ``kl`` draws the KL of each latent layer. ``kept`` takes the top k
latent layers from the posterior, all others from their priors, for every k: the bits of the kept latents, of all pixels
given them, and pictures of the first images (the others at their most likely), as VDVAE's (arXiv 2011.10650).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import torch
from benchmark_photos import markdown
from torch import Tensor

from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.exact.arithmetic import plain
from vdvae_codec.model.distributions.gaussian import Gaussian, gaussian_kl
from vdvae_codec.model.distributions.logistics import Mixture
from vdvae_codec.model.layers.base import Acts, PixelLayer
from vdvae_codec.model.layers.latent import LatentLayer
from vdvae_codec.model.sampling import Sample, sheet
from vdvae_codec.scoring.terms import NATS
from vdvae_codec.training.sources import open_images

BATCH = 64
SHOWN = 8  # images of the pictures
COLUMNS = 9  # of the pictures, at most


class Keep(Sample):
    """Visitor that takes the first ``kept`` latent layers from the posterior, and draws the others.

    Counts the KL of the kept layers and the bits of the image x; ``picture`` is what would be drawn in its place.
    """

    picture: Tensor  # (B, 3, H, W) in pixel levels

    def __init__(self, acts: Acts, kept: int, temperature: float):
        super().__init__(temperature)
        self.acts, self.kept = acts, kept
        self.kl_bits: list[float] = []  # of each kept layer
        self.pixel_bits = 0.0

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if len(self.kl_bits) == self.kept:
            return super().latent(layer, p, posterior)
        q = posterior(self.acts)
        active = layer.active[:, None, None]
        self.kl_bits.append(float((gaussian_kl(q, p) * active).sum() / NATS))
        return torch.where(active, q.sample(self.temperature), p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        self.pixel_bits += float(p.nll_nats(layer.plane(x), layer.channels).sum() / NATS)
        self.picture = p.sample(0.0)
        if layer.channels == 1:
            self.picture = self.picture[:, p.order[:1]].expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Kept:
    """With k layers kept, over all images."""

    kl_bpd: list[float]  # of each kept layer
    pixel_bpd: float
    psnr_db: float  # of the most likely image
    pictures: Tensor  # (SHOWN, 3, H, W)


@torch.no_grad()
@plain()
def keep(released: Released, x: Tensor, kept: int) -> Kept:
    """Images x (N, 3, H, W) in pixel levels."""
    model, channels = released.model, released.config.channels
    kl, pixel, errors, pictures = np.zeros(kept), 0.0, 0.0, []
    for part in x.split(BATCH):
        acts = model.encode(part)
        counted, drawn = Keep(acts, kept, 1.0), Keep(acts, kept, 0.0)
        for visit in (counted, drawn):
            model.walk(part, visit)
        kl, pixel = kl + counted.kl_bits, pixel + counted.pixel_bits
        errors += float(((drawn.picture - part)[:, :channels] ** 2).sum())
        pictures.append(drawn.picture)
    dims = x[:, :channels].numel()
    return Kept(
        list(kl / dims), pixel / dims, 10 * np.log10(255**2 / max(errors / dims, 1e-9)), torch.cat(pictures)[:SHOWN]
    )


def read(model: str, images: Path, count: int) -> tuple[Released, Tensor]:
    """The model, and ``count`` of the images, evenly spaced: (N, 3, H, W) in pixel levels, G, R, B."""
    released = load_released(model)
    if len(released.model.pixel_layers) != 1 or not released.model.latent_layers:
        raise click.ClickException(f"{model}: one layer of its pixels must be all, beneath latents")
    with tempfile.TemporaryDirectory() as cache:
        opened = open_images(images, 1, Path(cache))
        chosen = [opened[int(n)] for n in np.linspace(0, len(opened.names) - 1, count)]
    x = torch.from_numpy(np.stack(chosen)[..., [1, 0, 2]]).permute(0, 3, 1, 2).float()
    return released, x.contiguous(memory_format=torch.channels_last)


@click.group()
def main() -> None:
    """What the latents of a model hold."""


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The picture.")(command)
    command = click.option("--count", default=256, show_default=True, help="Images.")(command)
    command = click.argument("images", type=click.Path(path_type=Path))(command)
    return click.argument("model")(command)


@main.command()
@shared_options
def kl(model: str, images: Path, count: int, out: Path) -> None:
    """KL by layer and resolution."""
    released, x = read(model, images, count)
    strides = [layer.stride for layer in released.model.latent_layers]
    found = keep(released, x, len(strides))
    names = sorted(set(strides), reverse=True)
    figure, (layers, sums) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(3, 1), layout="constrained")
    for n, stride in enumerate(names):
        places = [m for m, s in enumerate(strides) if s == stride]
        layers.bar([m + 1 for m in places], [found.kl_bpd[m] for m in places], color=f"C{n}", label=f"1/{stride}")
        sums.bar(f"1/{stride}", sum(found.kl_bpd[m] for m in places), color=f"C{n}")
    sums.bar("pixels", found.pixel_bpd, color="0.6")
    layers.set(xlabel="latent layer, from the top", ylabel="KL, bits per dim", title=f"{released.name}, {count} images")
    sums.set(title=f"{sum(found.kl_bpd) + found.pixel_bpd:.3f} in all")
    layers.legend(title="resolution")
    figure.savefig(out, dpi=110)
    rows = [(n + 1, f"1/{s}", f"{v:.4f}") for n, (s, v) in enumerate(zip(strides, found.kl_bpd))]
    print(markdown(("layer", "resolution", "KL, bits per dim"), rows))


@main.command()
@shared_options
def kept(model: str, images: Path, count: int, out: Path) -> None:
    """Rate and picture by the number of top layers that are kept."""
    released, x = read(model, images, count)
    strides = [layer.stride for layer in released.model.latent_layers]
    torch.manual_seed(0)
    found = [keep(released, x, k) for k in range(len(strides) + 1)]
    latents = [sum(f.kl_bpd) for f in found]
    totals = [bits + f.pixel_bpd for bits, f in zip(latents, found)]
    figure, (rate, pictures) = plt.subplots(2, 1, figsize=(9, 8), height_ratios=(2, 3), layout="constrained")
    rate.plot(totals, "o-", label="latents and pixels")
    rate.plot(latents, "s-", label="latents that are kept")
    rate.set(xlabel="layers kept, from the top", ylabel="bits per dim", title=f"{released.name}, {count} images")
    rate.set_ylim(0)
    psnr = rate.twinx()
    psnr.plot([f.psnr_db for f in found], "^--", color="C2", label="PSNR of the most likely image")
    psnr.set_ylabel("PSNR, dB")
    figure.legend(*map(sum, zip(*(a.get_legend_handles_labels() for a in (rate, psnr)), strict=True), ([], [])),
                  loc="outside upper center", ncols=3)
    columns = np.unique(np.linspace(0, len(strides), min(COLUMNS, len(strides) + 1)).round().astype(int))
    rows = [torch.stack([*(found[k].pictures[n] for k in columns), x[n]]) for n in range(min(SHOWN, len(x)))]
    pictures.imshow(sheet(rows, top=[*(str(k) for k in columns), "image"]))
    pictures.axis("off")
    figure.savefig(out, dpi=110)
    dims = x[0, : released.config.channels].numel()
    names = ["", *(f"1/{stride}" for stride in strides)]
    table = [
        (k, names[k], f"{bits * dims:.0f}", f"{bits:.4f}", f"{total:.3f}", f"{f.psnr_db:.1f}")
        for k, (bits, total, f) in enumerate(zip(latents, totals, found))
    ]
    head = ("kept", "finest", "bits of an image's latents", "latents, bits per dim", "and pixels", "PSNR, dB")
    print(markdown(head, table))


if __name__ == "__main__":
    main()
