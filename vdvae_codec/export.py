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
from vdvae_codec.training.data import load_folder, random_crops
from vdvae_codec.training.loop import stack_terms

CROPS, SIDE = 24, 192  # for calibration, and as many others for the comparison
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
    images = list(load_folder(data, SIDE).values())
    calibration, measured = (random_crops(images, CROPS, SIDE, (recipe.seed, 2, n), augment=False) for n in range(2))
    exact = quantise_model(model, list(torch.split(calibration, 4)))
    image = random_crops(images, 1, KNOWN_SIDE, (recipe.seed, 3), augment=False)[0].to(torch.uint8)
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
def float_elbo_bpd(model: VDVAE, x: Tensor) -> float:
    """Negative ELBO of the float model on images x (B, 3, H, W), bits per sub-pixel."""
    torch.manual_seed(0)
    terms = [stack_terms(elbo(model, part), x) for part in torch.split(x, 4)]
    return float(sum(kl.sum() + nll.sum() for kl, nll in terms))


def exact_elbo_bpd(model: VDVAE, x: Tensor) -> float:
    """Negative ELBO of the exact model on images x (B, 3, H, W), bits per sub-pixel."""
    tables = make_tables()
    bits = 0.0
    for part in torch.split(x, 4):
        terms = exact_elbo(model, tables, Group(torch.ones_like(part[:, 0], dtype=torch.bool), 3), part)
        bits += sum(terms.kl_bits) + sum(terms.pixel_bits)
    return bits / x.numel()
