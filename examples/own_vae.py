"""A VAE of your own to a file and back: two latent layers in plain torch, bits-back coded by this package's codecs.

    python examples/own_vae.py train mnist.npz vae.pt --minutes 5
    python examples/own_vae.py compress mnist.npz vae.pt mnist.bb
    python examples/own_vae.py decompress mnist.bb vae.pt mnist.npy

An .npz holds x_train and x_test, (N, 28, 28) uint8. ``--binary`` of train codes single bits: whether a pixel is 128 or
more. The file is for this machine, this torch and as many threads: see docs/tutorials/your-own-vae.md.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.entropy.ans import SYMBOLS, Stack
from vdvae_codec.entropy.bits_back import Receiver, Sender
from vdvae_codec.entropy.codec import Codec, nibbles_codec
from vdvae_codec.exact.cdf import (
    LOG_SIGMA_RANGE,
    STEPS,
    WEIGHT_ONE,
    ByteMixture,
    location_of,
    make_tables,
    nearest_scale,
    on_grid,
    weight_of,
)

SIDE, HIDDEN, SIZES = 28, 400, (16, 32)  # of z2, which comes first, and of z1
MIXTURES = 3
LONGEST_GROUP = 512  # images

# ---- the model: nothing of it is this package's ----


def mlp(cin: int, cout: int) -> nn.Sequential:
    hidden = nn.Sequential(nn.Linear(cin, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU())
    return hidden.append(nn.Linear(HIDDEN, cout))


class VAE(nn.Module):
    """p(z2) p(z1 | z2) p(x | z1, z2) and q(z2 | x) q(z1 | z2, x); x (B, 784) in 0..1, latents (B, 16) and (B, 32)."""

    def __init__(self, binary: bool):
        super().__init__()
        self.binary = binary
        self.p1 = mlp(SIZES[0], 2 * SIZES[1])
        self.q2, self.q1 = mlp(SIDE**2, 2 * SIZES[0]), mlp(SIDE**2 + SIZES[0], 2 * SIZES[1])
        self.px = mlp(sum(SIZES), SIDE**2 * (1 if binary else 3 * MIXTURES))

    def seen(self, x: Tensor) -> Tensor:
        """What posteriors take in of pixel levels, or bits."""
        return x.float() / (1 if self.binary else 255)

    def prior(self, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and log sigma of the next latent, given those before it."""
        mean, log_sigma = self.p1(z[0]).chunk(2, 1) if z else torch.zeros(2, 1, 1)
        return mean, log_sigma

    def posterior(self, x: Tensor, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Likewise, given the image too."""
        mean, log_sigma = (self.q1(torch.cat([x, *z], 1)) if z else self.q2(x)).chunk(2, 1)
        return mean, log_sigma

    def likelihood(self, z: list[Tensor]) -> Tensor:
        """(B, 784) logits of bits, or (3, K, B, 784): logits, locations in pixel levels and log sigmas of logistics."""
        out: Tensor = self.px(torch.cat(z, 1))
        if self.binary:
            return out
        logits, location, log_sigma = out.view(len(out), 3, MIXTURES, SIDE**2).permute(1, 2, 0, 3)
        return torch.stack([logits, 128 + 128 * location, (log_sigma + 1).clamp(*LOG_SIGMA_RANGE)])

    def elbo_nats(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """KL and -log p(x | z) of images (B, 784), pixel levels or bits, in nats."""
        z: list[Tensor] = []
        kl = torch.zeros(())
        seen = self.seen(x)
        for _ in SIZES:
            (pm, ps), (qm, qs) = self.prior(z), self.posterior(seen, z)
            kl = kl + (ps - qs + 0.5 * ((2 * (qs - ps)).exp() + (qm - pm) ** 2 * (-2 * ps).exp() - 1)).sum()
            z.append(qm + qs.exp() * torch.randn_like(qm))
        out = self.likelihood(z)
        if self.binary:
            return kl, F.binary_cross_entropy_with_logits(out, x, reduction="sum")
        logits, location, log_sigma = out
        edges = [torch.where(x == end, far, x + half) for end, half, far in ((0.0, -0.5, -1e5), (255.0, 0.5, 1e5))]
        low, high = (torch.sigmoid((edge - location) * (-log_sigma).exp()) for edge in edges)
        log_p = torch.log_softmax(logits, 0) + (high - low).clamp(min=1e-7).log()
        return kl, -torch.logsumexp(log_p, 0).sum()


# ---- coding: three functions of the model become codecs, and bits-back does the rest ----

TABLES = make_tables()
GRID = 3  # latents are multiples of 2^-3, fine against most posteriors, and within 16 of 0, as priors want


def latent_codec(gaussian: tuple[Tensor, Tensor], shape: tuple[int, int]) -> Codec:
    """Of the indices k + 128 of latents z = k 2^-GRID of a shape (B, zdim), flattened."""
    mean, log_sigma = (t.expand(shape).reshape(1, -1).numpy() for t in gaussian)
    location = location_of(on_grid(mean * 2**GRID, STEPS) + 128)
    scale = nearest_scale(TABLES.gaussian_scale, log_sigma + GRID * math.log(2))
    weight = np.full(scale.shape, WEIGHT_ONE, np.int32)
    return nibbles_codec(ByteMixture(TABLES.gaussian.numpy(), location, scale, weight, floor=0).nibbles())


def pixel_codec(out: Tensor, binary: bool) -> Codec:
    """Of pixel levels, or bits, of images (B, 784), flattened."""
    if binary:
        p = torch.sigmoid(out).reshape(-1).clamp(1e-4, 1 - 1e-4).numpy()
        frequencies = np.full((len(p), SYMBOLS), 2.0**-20, np.float32)
        frequencies[:, 0], frequencies[:, 1] = 1 - p, p
        return Codec(lambda stack, x: stack.push(x, frequencies), lambda stack: stack.pop(frequencies))
    logits, location, log_sigma = out.reshape(3, MIXTURES, -1).numpy()
    scale, weight = nearest_scale(TABLES.inverse_scale, log_sigma), weight_of(TABLES, logits)
    return nibbles_codec(ByteMixture(TABLES.logistic.numpy(), location_of(location), scale, weight).nibbles())


def z_of(index: np.ndarray, count: int) -> Tensor:
    """(N,) indices to latents (count, zdim)."""
    return (torch.from_numpy(index).float().view(count, -1) - 128) * 2.0**-GRID


@torch.no_grad()
def push(model: VAE, stack: Stack, x: np.ndarray, direct: bool) -> None:
    """Puts images (B, 784) on the stack; latents are drawn with the bits that lie there, or where direct are means."""
    sender, z = Sender(stack, direct), list[Tensor]()
    seen = model.seen(torch.from_numpy(x))
    for size in SIZES:
        q, shape = model.posterior(seen, z), (len(x), size)
        nearest = (q[0] * 2**GRID).round().clamp(-128, 127).int().flatten().numpy() + 128
        codecs = latent_codec(model.prior(z), shape), latent_codec(q, shape)
        z.append(z_of(sender.latent(*codecs, lambda point=nearest: point), len(x)))  # type: ignore[misc]
    if sender.borrows and stack.empty:
        raise click.ClickException("the bits that a group would borrow are not there: make the first ones smaller")
    sender.observed(pixel_codec(model.likelihood(z), model.binary), x.flatten().astype(np.int32))
    sender.finish()


@torch.no_grad()
def pop(model: VAE, stack: Stack, count: int, direct: bool) -> np.ndarray:
    """Takes images (count, 784) off the stack, and gives back the bits that drew their latents."""
    receiver, z, found = Receiver(stack, direct), list[Tensor](), list[Tensor]()
    for size in SIZES:
        shape, before = (count, size), list(z)

        def posterior(before: list[Tensor] = before, shape: tuple[int, int] = shape) -> Codec:
            return latent_codec(model.posterior(found[0], before), shape)  # called when x is known

        z.append(z_of(receiver.latent(latent_codec(model.prior(z), shape), posterior), count))
    x = receiver.observed(pixel_codec(model.likelihood(z), model.binary)).reshape(count, -1)
    found.append(model.seen(torch.from_numpy(x)))
    receiver.finish()
    return x


def groups(count: int) -> Iterator[tuple[int, int]]:
    """Images first to last - 1 of each group: 16, then a third of those before it, whose bits it borrows."""
    first = 0
    while first < count:
        last = min(count, first + min(max(16, first // 3), LONGEST_GROUP))
        yield first, last
        first = last


# ---- commands ----


def images_of(file: Path, part: str, binary: bool) -> np.ndarray:
    """(N, 784) uint8 pixel levels, or bits."""
    x = np.load(file)[part].reshape(-1, SIDE**2)
    return (x >= 128).astype(np.uint8) if binary else x


def load(file: Path) -> VAE:
    saved = torch.load(file, weights_only=True)
    model = VAE(saved["binary"])
    model.load_state_dict(saved["state"])
    return model


@click.group()
def main() -> None:
    """Train a VAE, compress images with it, decompress them."""
    torch.manual_seed(0)


@main.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--minutes", default=5.0, show_default=True)
@click.option("--binary", is_flag=True, help="Code bits: whether a pixel is 128 or more.")
def train(data: Path, model: Path, minutes: float, binary: bool) -> None:
    """Train on x_train of DATA and write the file MODEL."""
    x, vae = torch.from_numpy(images_of(data, "x_train", binary)), VAE(binary)
    optimizer, begun = torch.optim.Adam(vae.parameters()), time.monotonic()
    for step in itertools.count():
        done = (time.monotonic() - begun) / (60 * minutes)
        if done >= 1:
            break
        kl, nll = vae.elbo_nats(x[torch.randint(len(x), (100,))].float())
        loss = (min(1.0, 0.01 + 5 * done) * kl + nll) / (100 * SIDE**2)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * done)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 0:
            bits = (kl + nll).item() / (100 * SIDE**2 * math.log(2))
            click.echo(f"step {step}: {bits:.4f} bits per dim", err=True)
    torch.save({"binary": binary, "state": vae.state_dict()}, model)


@main.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
def compress(data: Path, model: Path, output: Path) -> None:
    """Compress x_test of DATA: its number of images as four bytes, then the stack."""
    vae, stack = load(model), Stack()
    x = images_of(data, "x_test", vae.binary)
    for first, last in groups(len(x)):
        push(vae, stack, x[first:last], direct=first == 0)
    output.write_bytes(np.array([len(x), *stack.words()], "<u4").tobytes())
    with torch.no_grad():
        elbo = sum(float(sum(vae.elbo_nats(part.float()))) for part in torch.from_numpy(x).split(500)) / math.log(2)
    click.echo(f"ELBO {elbo / x.size:.4f}, file {8 * output.stat().st_size / x.size:.4f} bits per dim")


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
def decompress(file: Path, model: Path, output: Path) -> None:
    """Write the images of FILE as an .npy, (N, 28, 28) uint8."""
    vae, (count, *words) = load(model), np.fromfile(file, "<u4")
    stack = Stack(np.array(words, np.uint32))
    parts = [pop(vae, stack, last - first, direct=first == 0) for first, last in reversed(list(groups(int(count))))]
    np.save(output, np.concatenate(parts[::-1]).astype(np.uint8).reshape(-1, SIDE, SIDE))


if __name__ == "__main__":
    main()
