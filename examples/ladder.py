"""What a photo model in training can and cannot do yet, on held-out photographs: measurements of its ladder.

    python examples/ladder.py histories RUN photos/val
    python examples/ladder.py adaptation RUN photos/val
    python examples/ladder.py rung photos/train photos/val models/photo-2/ladder/phases2.toml --minutes 4

``histories``: bits per dim against JPEG XL e7 on 384x384 crops as they are, and after what cameras and editors do.
``adaptation``: what a few steps of gradient descent on one image gain, by which parameters may move (their
cost in the file is not counted).
``rung``: an architecture and recipe, trained for minutes of one core's time, with ``--no-latents`` as its own control.
With ``--known 1`` the first pixel layer's bits do not count: so the last doubling of the resolution is trained alone.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import pillow_jxl  # noqa: F401  registers the format
import torch
import torch.nn as nn
from benchmark_photos import hardware, markdown
from PIL import Image
from torch import Tensor

from vdvae_codec.checkpoint import find_checkpoint, load_tensors, read_checkpoint
from vdvae_codec.config import read_config
from vdvae_codec.images import image_files
from vdvae_codec.model.blocks import Conv
from vdvae_codec.model.vdvae import VDVAE, elbo
from vdvae_codec.training.data import Crops
from vdvae_codec.training.processing import JPEG, LUMA, PHOTOCD, SMOOTH, mosaiced, recoloured, resize
from vdvae_codec.training.sources import open_images
from vdvae_codec.training.trainer import kl_weight, optimizers, stack_terms

SIDE = 384
STEPS = 12


def noisy(colours: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x + 3 * np.random.default_rng(0).standard_normal((*x.shape[:2], colours), np.float32)


def half_colour(x: np.ndarray) -> np.ndarray:
    return recoloured(x, JPEG, True, True, cosited=False)


HISTORIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda x: x,
    "colour at half resolution": half_colour,
    "colour as in PhotoCD": lambda x: recoloured(x, PHOTOCD, True, True, cosited=True),
    "noise of sigma 3, each colour its own": noisy(3),
    "noise of sigma 3, the same for all colours": noisy(1),
    "1.5 times larger": lambda x: resize(x, x.shape[0] * 3 // 2, x.shape[1] * 3 // 2, SMOOTH[1])[:SIDE, :SIDE],
    "twice larger": lambda x: resize(x, x.shape[0] * 2, x.shape[1] * 2, SMOOTH[1])[:SIDE, :SIDE],
    "Bayer mosaic": mosaiced,
    "Bayer mosaic, colour at half resolution": lambda x: half_colour(mosaiced(x)),
    "grey": lambda x: np.repeat((x @ LUMA)[..., None], 3, 2),
}

PARAMETERS: dict[str, Callable[[str], bool]] = {
    "biases of the heads": lambda name: name.endswith("head.bias"),
    "heads": lambda name: ".head." in name,
    "all biases": lambda name: name.endswith(".bias"),
    "everything": lambda name: True,
}
RATES = (1e-2, 1e-3, 5e-3, 3e-4)


def crops(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The centre of each photograph: (SIDE, SIDE, 3) uint8."""
    for path in image_files(folder):
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        y, x = ((size - SIDE) // 2 for size in pixels.shape[:2])
        yield path.stem, pixels[y : y + SIDE, x : x + SIDE]


def tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) float, G, R, B."""
    return torch.from_numpy(pixels[..., [1, 0, 2]].transpose(2, 0, 1).copy())[None].float()


def bits(model: VDVAE, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    terms = elbo(model, x)
    return torch.stack([t.sum() for t in terms.nll_nats + terms.kl_nats]).sum() / math.log(2)


def jpeg_xl_bits(pixels: np.ndarray) -> int:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JXL", lossless=True, effort=7)
    return 8 * len(file.getvalue())


def model_of(run: Path) -> VDVAE:
    """The averaged weights of a run's last checkpoint."""
    found = find_checkpoint(run)
    if found is None:
        raise click.ClickException(f"{run}: holds no checkpoint")
    model = VDVAE(read_checkpoint(found)[0])
    tensors, _ = load_tensors(found)
    model.load_state_dict({k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")})
    print(f"{found.name}, {hardware()}\n")
    return model


@click.group()
def main() -> None:
    pass


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--every", default=2, show_default=True, help="Of the folder's photographs.")
@torch.no_grad()
def histories(run: Path, folder: Path, every: int) -> None:
    model, rows = model_of(run), []
    images = [pixels for _, pixels in crops(folder)][::every]
    for name, change in HISTORIES.items():
        changed = [change(i.astype(np.float32)).round().clip(0, 255).astype(np.uint8) for i in images]
        count = sum(c.size for c in changed)
        ours = sum(float(bits(model, tensor(c))) for c in changed) / count
        theirs = sum(jpeg_xl_bits(c) for c in changed) / count
        rows.append((name, f"{ours:.4f}", f"{theirs:.4f}", f"{100 * (ours / theirs - 1):+.1f} %"))
    print(markdown(("history", "ELBO (float)", "JPEG XL e7, files", "difference"), rows))


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--every", default=5, show_default=True, help="Of the folder's photographs.")
def adaptation(run: Path, folder: Path, every: int) -> None:
    model = model_of(run)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = []
    for (kind, chosen), rate in zip(PARAMETERS.items(), RATES):
        gains, begun = [], time.perf_counter()
        candidates = [(n, p) for n, p in model.named_parameters() if n.startswith("layers") and "posterior" not in n]
        moved = {n: p for n, p in candidates if chosen(n)}
        for _, pixels in list(crops(folder))[::every]:
            model.load_state_dict(before)
            for parameter in model.parameters():
                parameter.requires_grad_(any(parameter is m for m in moved.values()))
            optimizer = torch.optim.Adam(moved.values(), rate)
            x, curve = tensor(pixels), []
            for step in range(STEPS + 1):
                optimizer.param_groups[0]["lr"] = rate * (1 - 0.8 * step / STEPS)
                loss = bits(model, x) / x.numel()
                curve.append(float(loss.detach()))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            gains.append([100 * (curve[n] / curve[0] - 1) for n in (3, 6, STEPS)])
        seconds = (time.perf_counter() - begun) / len(gains) / STEPS
        count = sum(p.numel() for p in moved.values())
        rows.append((kind, count, *(f"{gain:+.2f} %" for gain in np.mean(gains, 0)), f"{seconds:.2f}"))
    print(markdown(("what moves", "parameters", "after 3 steps", "6", "12", "s a step"), rows))


def multiply_adds(model: VDVAE) -> int:
    """Of all convolutions, encoder and posteriors included, for each pixel of the image."""
    side, total = 256, 0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        assert isinstance(module, Conv)
        total += module.weight.numel() * out.shape[2] * out.shape[3]

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, Conv)]
    with torch.no_grad():
        elbo(model, torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return round(total / side**2)


@main.command()
@click.argument("train", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--minutes", default=3.0, show_default=True, help="Of processor time.")
@click.option("--known", default=0, show_default=True, help="Pixel layers that are given: they do not count.")
@click.option("--no-latents", is_flag=True, help="Without the latent layers and the encoder.")
def rung(train: Path, folder: Path, config: Path, minutes: float, known: int, no_latents: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    architecture, recipe = read_config(config)
    if no_latents:
        stages = tuple(replace(s, latents=0, encoder_blocks=0) for s in architecture.stages)
        architecture = replace(architecture, stages=stages, texture=False)
    model = VDVAE(architecture).to(memory_format=torch.channels_last)
    stepped = optimizers(model, recipe)
    with tempfile.TemporaryDirectory() as cache:
        training = Crops(open_images(train, recipe.crop, Path(cache)), recipe.crop, "photo")
    begun, usual = time.process_time(), 0.0

    def terms(x: Tensor) -> tuple[Tensor, Tensor]:
        """Bits per dim of each latent layer and of each pixel layer that counts."""
        kl, nll = stack_terms(elbo(model, x), x)
        return kl, nll[known:]

    for step in itertools.count():
        done = (time.process_time() - begun) / (60 * minutes)
        if done >= 1:
            break
        kl, nll = terms(training.batch((0, step), 0, recipe.batch).float())
        loss = nll.sum() + kl.sum() * kl_weight(replace(recipe, kl_warmup_steps=1000), int(2000 * done))
        model.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 2 * usual if step > 20 else math.inf))
        usual += 0.02 * (min(norm, 4 * usual) - usual) if usual else norm
        for optimizer in stepped.values():
            for group in optimizer.param_groups:
                rate = recipe.learning_rate * group["peak"]
                group["lr"] = rate * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * done)) / 2
            optimizer.step()
    middles = [pixels[128:256, 128:256] for _, pixels in crops(folder)]
    scanned = [recoloured(m.astype(np.float32), PHOTOCD, True, True, cosited=True) for m in middles]
    rates, layers = [], Tensor()
    for images in (scanned, middles):
        with torch.no_grad():
            x = torch.cat([tensor(np.asarray(i).round().clip(0, 255).astype(np.uint8)) for i in images])
            layers, nll = terms(x)
            rates.append(f"{float(layers.sum() + nll.sum()):.4f}")
    parameters, seen = sum(p.numel() for p in model.parameters()), step * recipe.batch * recipe.crop**2 / 1e6
    kl_bpd = " ".join(f"{float(v):.3f}" for v in layers) or "-"
    print(f"{hardware()}\n")
    head = ("rung", "parameters", "MAC/pixel", "steps", "Mpx seen", "as they are", "as PhotoCD", "KL of each layer")
    name = config.stem + ", no latents" * no_latents
    print(markdown(
        head, [(name, parameters, multiply_adds(model), step, f"{seen:.0f}", rates[1], rates[0], kl_bpd)]
    ))


if __name__ == "__main__":
    main()
