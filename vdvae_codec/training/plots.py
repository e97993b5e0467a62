"""What a training shows: the loss curve and a sheet of images, as PNG."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vdvae_codec.model.vdvae import VDVAE, Sample


def plot_loss(log: Path, out: Path) -> None:
    """Draws training and validation bits per dim and the KL of every layer from a ``log.jsonl``."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [r["step"] for r in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [r["train_bpd"] for r in rows], label="training")
    left.plot(steps, [r["validation_bpd"] for r in rows], label="validation (EMA)")
    low = min(r["validation_bpd"] for r in rows)
    left.set(xlabel="step", ylabel="bits per dim", ylim=(low - 0.05, low + 1.0))
    left.legend()
    for n, kl in enumerate(zip(*(r["kl_bpd"] for r in rows))):
        right.plot(steps, kl, label=f"z{n}")
    right.set(xlabel="step", ylabel="KL per latent layer (bits per dim)", yscale="log")
    right.legend(ncols=2, fontsize="small")
    figure.savefig(out, dpi=80)


@torch.no_grad()
def sample_sheet(model: VDVAE, x: Tensor, out: Path) -> None:
    """Three rows: images x (B, 3, H, W, G-R-B), the model's draw given their latents, and draws from the prior."""
    torch.manual_seed(0)
    rows = [x]
    acts = model.encoder(x) if model.encoder is not None else {}
    for visit in (Sample(acts), Sample()):
        image = torch.zeros_like(x)
        model.walk(image, visit)
        rows.append(image)
    sheet = torch.cat([torch.cat(list(r), 2) for r in rows], 1)  # (3, 3 H, B W)
    Image.fromarray(sheet[[1, 0, 2]].permute(1, 2, 0).byte().cpu().numpy()).save(out)
