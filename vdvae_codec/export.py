"""From a training run to a released model, with float and exact ELBO measured side by side."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdvae_codec.checkpoint import latest_checkpoint, load_tensors
from vdvae_codec.config import ModelConfig, TrainConfig, from_dict, write_config
from vdvae_codec.errors import ModelError
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.exact.quantise import quantise_model
from vdvae_codec.exact.tables import make_tables
from vdvae_codec.hierarchy import Group, exact_elbo
from vdvae_codec.model.layers import LatentLayer
from vdvae_codec.model.vdvae import VDVAE, elbo
from vdvae_codec.released import WEIGHTS, load_released, save_released
from vdvae_codec.training.data import Crops
from vdvae_codec.training.sources import open_images
from vdvae_codec.training.trainer import stack_terms

PIXELS, SIDE, PART = 24 * 192**2, 192, 4 * 192**2  # of crops for calibration, and as many others for the comparison
KNOWN_SIDE = 64


def load_float(checkpoint: Path) -> tuple[VDVAE, TrainConfig, dict[str, Any]]:
    """The averaged weights of a checkpoint, its recipe and its meta data; raises ModelError."""
    tensors, meta = load_tensors(checkpoint)
    model = VDVAE(from_dict(ModelConfig, meta["config"]))
    model.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    return model.requires_grad_(False).eval(), from_dict(TrainConfig, meta["recipe"]), meta


def export_run(run: Path, data: Path, output: Path, force: bool) -> dict[str, Any]:
    """Quantises the latest checkpoint of ``run`` and writes the model's folder ``output``.

    Raises ModelError if there is no checkpoint or ``output`` holds a model and ``force`` is false; ExactnessError if a
    bound fails or the written model does not give its known answer.
    """
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise ModelError(f"{run}: holds no checkpoint")
    if (output / WEIGHTS).exists() and not force:
        raise ModelError(f"{output}: holds a model already; --force overwrites it")
    model, recipe, meta = load_float(checkpoint)
    images = open_images(data, recipe.crop, run / "cache")
    stride = model.config.max_stride
    side = model.config.side or min(SIDE, int(images.sizes.min()) // stride * stride)
    crops = Crops(images, side, "none")
    calibration, measured = (
        list(torch.split(crops.batch((recipe.seed, 2, n), 0, PIXELS // side**2).float(), PART // side**2))
        for n in range(2)
    )
    exact = quantise_model(model, calibration)
    image = Crops(images, model.config.side or min(KNOWN_SIDE, side), "none").batch((recipe.seed, 3), 0, 1)[0]
    output.mkdir(parents=True, exist_ok=True)
    write_config(output / "config.toml", model.config, recipe)
    digest = save_released(output, model.config, exact, image)
    released = load_released(str(output), "cpu")
    convolutions = [m for m in released.model.modules() if isinstance(m, ExactConv)]
    latents = [layer for layer in released.model.layers if isinstance(layer, LatentLayer)]
    alive = torch.cat([layer.alive for layer in latents]) if latents else torch.zeros(0, dtype=torch.bool)
    float_bpd, exact_bpd = float_elbo_bpd(model, measured), exact_elbo_bpd(released.model, measured)
    log = run / "loss.png"
    if log.exists():
        shutil.copy(log, output / "loss.png")
    return {
        "model": str(output), "digest": digest.hex(), "step": meta["step"], "train_seconds": meta["seconds"],
        "float_elbo_bpd": float_bpd, "exact_elbo_bpd": exact_bpd,
        "exact_cost_percent": 100 * (exact_bpd / float_bpd - 1),
        "live_latents": f"{int(alive.sum())} of {len(alive)} channels",
        "split_convolutions": f"{sum(m.parts > 1 for m in convolutions)} of {len(convolutions)}",
        "weight_bytes": (output / WEIGHTS).stat().st_size,
    }


@torch.inference_mode()
def float_elbo_bpd(model: VDVAE, batches: list[Tensor]) -> float:
    """Negative ELBO of the float model on image batches (B, 3, H, W), bits per sub-pixel."""
    torch.manual_seed(0)
    bits = 0.0
    for x in batches:
        kl, nll = stack_terms(elbo(model, x), x)
        bits += float(kl.sum() + nll.sum()) * x.numel()
    return bits / sum(x.numel() for x in batches)


def exact_elbo_bpd(model: VDVAE, batches: list[Tensor]) -> float:
    """Negative ELBO of the exact model on image batches (B, 3, H, W), bits per sub-pixel."""
    tables, channels = make_tables(), model.config.channels
    bits = 0.0
    for x in batches:
        terms = exact_elbo(model, tables, Group(torch.ones_like(x[:, 0], dtype=torch.bool), channels), x)
        bits += sum(terms.kl_bits) + sum(terms.pixel_bits)
    return bits / sum(x.numel() * channels // 3 for x in batches)
