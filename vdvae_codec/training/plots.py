"""What a training shows: the curves of its log and a sheet of images, as PNG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vdvae_codec.model.sampling import reconstructions, samples, sheet
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.chance import seeded

KL_FLOOR = 1e-6  # bits per dim: a layer with less carries nothing
REACH = 1.0  # bits per dim that the curves show above their lowest point


def plot_loss(log: Path, out: Path) -> None:
    """Draws a ``log.jsonl``: bits per dim, learning rate, gradient norm and skipped steps, and the bits of every layer.

    The KL of the latent layers over time is a picture, a row a layer, where collapsed layers are dark; its title says
    how many were idle at the last validation. Values that are NaN, null or absent are left out.
    """
    from matplotlib import colormaps  # slow to import, and only needed here
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplot_mosaic([["bpd", "rate", "norm"], ["kl", "kl", "pixels"]])
    for panel in axes.values():
        panel.set(xlabel="step")

    curves = {"training": series(rows, "train_bpd"), "validation (EMA)": series(rows, "validation_bpd")}
    for label, (steps, values) in curves.items():
        axes["bpd"].plot(steps, values, ".-", markersize=3, label=label)
    axes["bpd"].set(ylabel="bits per dim")
    axes["bpd"].legend()
    shown = np.concatenate([values for _, values in curves.values()])
    shown = shown[np.isfinite(shown)]
    if len(shown):
        axes["bpd"].set_ylim(shown.min() - 0.05 * REACH, min(shown.max() + 0.05 * REACH, shown.min() + REACH))

    axes["rate"].plot(*series(rows, "learning_rate"), ".-", markersize=3)
    axes["rate"].set(ylabel="learning rate", ylim=(0, None))

    axes["norm"].plot(*series(rows, "grad_norm"), ".-", markersize=3)
    axes["norm"].set(ylabel="gradient norm", yscale="log")
    skipped = axes["norm"].twinx()
    skipped.step(*series(rows, "skipped"), where="post", color="tab:red")
    skipped.set_ylabel("skipped steps", color="tab:red")
    skipped.set_ylim(0, None)
    skipped.yaxis.set_major_locator(MaxNLocator(integer=True))

    steps, kl = series(rows, "train_kl_bpd")
    axes["kl"].set(ylabel="latent layer, from the top down")
    if kl.size:
        colours = LogNorm(KL_FLOOR, max(1e3 * KL_FLOOR, np.nan_to_num(kl, posinf=0).max()))
        # A row of the log is the mean since the one before it.
        mesh = axes["kl"].pcolormesh(np.append(0, steps), np.arange(kl.shape[1] + 1) - 0.5,
                                     np.maximum(kl, KL_FLOOR).T, norm=colours)
        figure.colorbar(mesh, ax=axes["kl"], label="KL (bits per dim)", pad=0.01)
        idle = [row["idle"] for row in rows if "idle" in row][-1:]
        axes["kl"].set(title=f"{len(idle[0])} of {kl.shape[1]} layers idle" if idle else "")
        axes["kl"].invert_yaxis()
        axes["kl"].yaxis.set_major_locator(MaxNLocator(integer=True))

    steps, nll = series(rows, "nll_bpd")
    viridis = colormaps["viridis"]
    for n, values in enumerate(nll.T if nll.size else []):
        axes["pixels"].plot(steps, values, ".-", markersize=3, color=viridis(n / len(nll.T)), label=f"x{n}")
    axes["pixels"].set(ylabel="pixel layers (bits per dim)")
    if axes["pixels"].lines:
        axes["pixels"].legend(ncols=2, fontsize="small")
    figure.savefig(out, dpi=80)


def series(rows: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (N,) and values (N,) or (N, layers) float64 of the rows that have ``key``; null is NaN."""
    having = [r for r in rows if r.get(key, []) != []]
    return np.array([r["step"] for r in having]), np.array([r[key] for r in having], dtype=float)


def sample_sheet(model: VDVAE, x: Tensor, out: Path) -> None:
    """Images x (B, 3, H, W) in pixel levels, G, R, B; what the model knows of them at each resolution; B samples.

    A resolution has two rows: only its latents and the coarser ones kept, then the pixels too; the rest is the most
    likely (temperature 0). Samples have temperature 1.
    """
    with seeded(0, x.device):
        rows = [x, *(row for kept in (False, True) for row in reconstructions(model, x, kept, temperature=0.0))]
        rows.append(samples(model, len(x), x.shape[2], x.shape[3], temperature=1.0))
    kinds = [f"{kind} 1/{stride}" for kind in ("latents", "+ pixels") for stride in model.config.strides]
    Image.fromarray(sheet(rows, ["images", *kinds, "samples"])).save(out)
