"""From a training run, or from published weights, to a model that can code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.quantise import quantise_model
from vdvae_codec.codec.store import CONFIG, WEIGHTS, load_released, save_released
from vdvae_codec.codec.visitors import exact_elbo
from vdvae_codec.errors import ModelError
from vdvae_codec.exact.arithmetic import plain
from vdvae_codec.exact.cdf import make_tables
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.model.child2021 import published_state
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.chance import seeded
from vdvae_codec.training.checkpoint import describe, latest_checkpoint, load_float, save_tensors
from vdvae_codec.training.data import Crops, Images
from vdvae_codec.training.recipe import Recipe, write_config
from vdvae_codec.training.rounding import tune
from vdvae_codec.training.sources import open_images
from vdvae_codec.training.trainer import stack_terms

PIXELS, SIDE, PART = 24 * 192**2, 192, 4 * 192**2  # of crops for calibration, and as many others for the comparison
KNOWN_SIDE = 64
CPU = torch.device("cpu")


def export_run(run: Path, data: Path, output: Path, force: bool, tune_steps: int = 0) -> dict[str, Any]:
    """Quantises the latest checkpoint of ``run`` and writes the model's folder ``output``.

    With ``tune_steps`` the weights are trained through their rounding first (``training.rounding``).

    Images of ``data`` (as ``sources.open_images`` takes them) calibrate, and others measure: what is returned has the
    negative ELBO in bits per dim of the float and of the exact model side by side. Raises ModelError if there is no
    checkpoint, or if ``output`` holds a model and ``force`` is false; ExactnessError if a bound fails or the written
    model does not give its known answer.
    """
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise ModelError(f"{run}: holds no checkpoint")
    if (output / WEIGHTS).exists() and not force:
        raise ModelError(f"{output}: holds a model already; --force overwrites it")
    model, recipe, meta = load_float(checkpoint)
    images = open_images(data, recipe.crop, run / "cache")
    calibration, measured, known = crops_for(model.config, recipe, images)

    def tuned(exact: VDVAE) -> None:
        tune(model, exact, Crops(images, recipe.crop, recipe.augment), recipe.seed, tune_steps)

    output.mkdir(parents=True, exist_ok=True)
    with plain():
        float_bpd = float_elbo_bpd(model, measured)
        exact = quantise_model(model, calibration, tuned if tune_steps else None)
        write_config(output / CONFIG, model.config, recipe)
        digest = save_released(output, model.config, exact, known)
        released = load_released(str(output), "cpu").model
        exact_bpd = exact_elbo_bpd(released, measured)
    if (run / "loss.png").exists():
        shutil.copy(run / "loss.png", output / "loss.png")
    return {
        "model": str(output), "digest": digest.hex(), "step": meta["step"], "train_seconds": meta["seconds"],
        "float_elbo_bpd": float_bpd, "exact_elbo_bpd": exact_bpd,
        "exact_cost_percent": 100 * (exact_bpd / float_bpd - 1), **counts(released),
        "weight_bytes": (output / WEIGHTS).stat().st_size,
    }


def crops_for(config: ModelConfig, recipe: Recipe, images: Images) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Batches (B, 3, s, s) float32 for calibration and for measuring, and the known image (3, k, k) uint8."""
    stride = config.max_stride
    side = config.side or min(SIDE, int(images.sizes.min()) // stride * stride)
    crops = Crops(images, side, "none")
    calibration, measured = (crops.batch((recipe.seed, 2, n), 0, max(1, PIXELS // side**2)).float() for n in range(2))
    known = Crops(images, config.side or min(KNOWN_SIDE, side), "none").batch((recipe.seed, 3), 0, 1)[0]
    size = max(1, PART // side**2)
    return list(torch.split(calibration, size)), list(torch.split(measured, size)), known


def counts(exact: VDVAE) -> dict[str, str]:
    """How many latent channels of an exact model are active, and how many convolutions sum in parts."""
    convolutions = [m for m in exact.modules() if isinstance(m, ExactConv)]
    active = [bool(channel) for layer in exact.latent_layers for channel in layer.active]
    return {
        "active_latents": f"{sum(active)} of {len(active)} channels",
        "split_convolutions": f"{sum(m.parts > 1 for m in convolutions)} of {len(convolutions)}",
    }


@torch.no_grad()
def float_elbo_bpd(model: VDVAE, batches: list[Tensor]) -> float:
    """Negative ELBO of the float model on image batches (B, 3, H, W), bits per sub-pixel."""
    bits = 0.0
    with seeded(0, CPU):
        for x in batches:
            kl, nll = stack_terms(elbo(model, x), x)
            bits += float(kl.sum() + nll.sum()) * x.numel()
    return bits / sum(x.numel() for x in batches)


def exact_elbo_bpd(model: VDVAE, batches: list[Tensor]) -> float:
    """Negative ELBO of the exact model on image batches (B, 3, H, W), bits per sub-pixel."""
    tables, channels = make_tables(), model.config.channels
    bits = 0.0
    for x in batches:
        terms = exact_elbo(model, tables, Group(torch.ones_like(x[:, :channels], dtype=torch.bool)), x)
        bits += sum(terms.kl_bits) + sum(terms.pixel_bits)
    return bits / sum(x[:, :channels].numel() for x in batches)


def import_published(file: Path, config: ModelConfig, recipe: Recipe, output: Path) -> int:
    """Writes the state dict of OpenAI's code in ``file`` as a checkpoint of the run ``output``.

    Returns its number of parameters. Raises ModelError as ``model.child2021.published_state``, or if ``output`` exists.
    """
    if output.exists():
        raise ModelError(f"{output}: exists already")
    with seeded(0, CPU):
        model = VDVAE(config)
    state = published_state(file, model)
    output.mkdir(parents=True)
    write_config(output / CONFIG, config, recipe)
    meta = {**describe(config, recipe), "step": 0, "seconds": 0.0}
    save_tensors(output / "checkpoint-00000000", {f"ema.{k}": v for k, v in state.items()}, meta)
    return sum(p.numel() for p in model.parameters())
