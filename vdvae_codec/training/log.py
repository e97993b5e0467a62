"""What a training writes beside its checkpoints: rows of log.jsonl, TensorBoard's events, and pictures."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.plots import plot_loss, sample_sheet
from vdvae_codec.training.trainer import Step

ROWS = "log.jsonl"


@dataclass
class Sums:
    """What the log's next row averages over; kept in checkpoints, so that a resumed run writes the same rows."""

    taken: int = 0
    bpd: float = 0.0
    grad_norm: float = 0.0
    kl_bpd: list[float] = field(default_factory=list)

    def add(self, step: Step) -> None:
        if step.taken:
            self.taken += 1
            self.bpd += step.bpd
            self.grad_norm += step.grad_norm
            self.kl_bpd = [a + b for a, b in zip(self.kl_bpd or [0.0] * len(step.kl_bpd), step.kl_bpd)]

    def row(self) -> dict[str, Any]:
        """Means over the steps that were taken; null where there were none."""
        n = self.taken
        return {
            "train_bpd": self.bpd / n if n else None, "train_kl_bpd": [k / n for k in self.kl_bpd],
            "grad_norm": self.grad_norm / n if n else None,
        }


def forget_after(run: Path, step: int) -> None:
    """Drops the rows of a run's log that a checkpoint at ``step`` does not know of."""
    log = run / ROWS
    if log.exists():
        rows = [line for line in log.read_text().splitlines(True) if line.endswith("\n")]
        log.write_text("".join(line for line in rows if json.loads(line)["step"] <= step))


class Log:
    """The log of a run, from ``step`` on."""

    def __init__(self, run: Path, step: int):
        self.run, self.board = run, tensorboard(run, step)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; its values are numbers, null or lists of numbers."""
        with (self.run / ROWS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items() if self.board is not None else ():
            values = {f"{name}/{n}": v for n, v in enumerate(value)} if isinstance(value, list) else {name: value}
            for tag, scalar in values.items():
                if scalar is not None:
                    self.board.add_scalar(tag, scalar, row["step"])

    def draw(self, model: VDVAE, x: Tensor, step: int) -> None:
        """The curves so far, and what the model makes of images x (B, 3, H, W) in pixel levels, G, R, B."""
        plot_loss(self.run / ROWS, self.run / "loss.png")
        sample_sheet(model, x, self.run / f"samples-{step:08d}.png")

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def tensorboard(run: Path, step: int) -> Any:
    """A writer of TensorBoard events if that is installed, or None."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run), purge_step=step)
