"""Scores from terms: how surprising an image is, each with its source.

No likelihood alone tells what does not belong: models of photographs give smooth foreign images *fewer* bits
(Nalisnick 2019a, arXiv 1810.09136). The default score therefore looks at all terms of an image at once, both ways
(``scoring.calibration``).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdvae_codec.model.config import ModelConfig
from vdvae_codec.scoring.terms import CELLS, Terms

if TYPE_CHECKING:
    from vdvae_codec.scoring.calibration import Calibration

SMALL_BPD = 1e-3  # added to rates before their logarithm
SMALL_SPREAD = 1e-2  # likewise to bits of a pixel
Row = dict[str, Any]  # what is written of an image


@dataclass(frozen=True)
class Scored:
    """An image: its terms and what it is."""

    name: str
    width: int
    height: int
    channels: int
    terms: Terms
    complexity_bits: float

    @property
    def dims(self) -> int:
        """Sub-pixels."""
        return self.width * self.height * self.channels

    @property
    def bpd(self) -> float:
        """Negative ELBO (or importance weighted bound) in bits per dim."""
        return self.terms.bound_bits / self.dims

    @property
    def llr_bpd(self) -> tuple[float, ...]:
        """LLR^{>k} = L - L^{>k} for k = 1, 2, ..., in bits per dim (Havtorn 2021, arXiv 2102.08248, eq. 9).

        L^{>k} is the bound in which the k active latent layers nearest to the data are drawn from their priors given
        those above: what the image needs of its own details beyond what its semantics imply. High is surprising.
        """
        total = sum(self.terms.kl_bits) + sum(self.terms.pixel_bits)
        return tuple((bits - total) / self.dims for bits in self.terms.prior_bits)

    @property
    def corrected_bpd(self) -> float:
        """S = -log2 p(x) - L(x), L a general coder's bits, in bits per dim (Serra 2020, arXiv 1909.11480, eq. 2)."""
        return (self.terms.bound_bits - self.complexity_bits) / self.dims


def features(scored: Scored, config: ModelConfig) -> dict[str, float]:
    """The vector that the default score looks at, by name.

    rate/S: log2 bits per dim of the pixel layers at stride S; excess/S: their bits less what pixels drawn from their
    own distributions cost (a typicality test of each resolution, Nalisnick 2019b, arXiv 1906.02994); kl/S: log2 KL per
    dim of the latent layers at stride S; share/S, where latents have several strides: log2 KL of those at S and coarser
    by the bits of the pixels; complexity: log2 of the general coder's bits per dim; ratio: log2 of the model's bits by
    the general coder's; colour/2, colour/3: log2 of a later colour's bits by the first one's; spread/S, without such
    latents: log2 of the standard deviation of the mean bits of cells of SxS pixels, by the bits of a pixel.
    """
    terms, dims = scored.terms, scored.dims

    def log_rate(bits: float, share: float = dims) -> float:
        return math.log2(max(bits, 0) / share + SMALL_BPD)

    def by_stride(values: tuple[float, ...]) -> list[float]:
        return [pixels for _, pixels in config.by_stride((), values).values()]

    found: dict[str, float] = {}
    counts = by_stride((1.0,) * len(terms.pixel_bits))
    for stride, count, bits, expected in zip(
        config.strides, counts, by_stride(terms.pixel_bits), by_stride(terms.expected_bits)
    ):
        if count:
            share = dims * count / stride**2  # about the sub-pixels of these layers
            found[f"rate/{stride}"] = log_rate(bits, share)
            found[f"excess/{stride}"] = (bits - expected) / share
    kl = {stride: bits for stride, (bits, _) in config.by_stride(terms.kl_bits, ()).items() if bits}
    found |= {f"kl/{stride}": log_rate(bits) for stride, bits in kl.items()}
    if len(kl) > 1:
        for stride, bits in zip(kl, itertools.accumulate(kl.values())):
            found[f"share/{stride}"] = log_rate(bits) - log_rate(sum(terms.pixel_bits))
    first, *later = (log_rate(bits) for bits in terms.colour_bits)
    found |= {f"colour/{n}": rate - first for n, rate in enumerate(later, 2)}
    pixels = scored.width * scored.height
    mean = (sum(terms.kl_bits) + sum(terms.pixel_bits)) / pixels
    for side, squares in zip(CELLS, terms.squares) if len(kl) < 2 else ():
        spread = math.sqrt(max(squares / pixels - mean**2, 0))
        found[f"spread/{side}"] = math.log2(spread + SMALL_SPREAD) - math.log2(mean + SMALL_SPREAD)
    found["complexity"] = log_rate(scored.complexity_bits)
    found["ratio"] = log_rate(terms.bound_bits) - found["complexity"]
    return found


def row(scored: Scored, config: ModelConfig, calibration: Calibration | None) -> Row:
    """What is printed and written of an image: what it is, scores (in bits per dim; ood, p and typicality by the
    calibration), then terms (in bits)."""
    values: Row = {
        "name": scored.name, "width": scored.width, "height": scored.height, "channels": scored.channels,
        "bpd": scored.bpd, "corrected_bpd": scored.corrected_bpd,
    }
    if calibration is not None:
        surprise = calibration.surprise(calibration.vector(features(scored, config)))
        values |= {"ood": surprise, "p": calibration.p_value(surprise)}
        values["typicality"] = calibration.typicality(scored.bpd)
    terms = dataclasses.asdict(scored.terms)
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in terms.items()}
    return values | {"llr_bpd": list(scored.llr_bpd), "complexity_bits": scored.complexity_bits} | lists
