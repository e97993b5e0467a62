"""Scores from terms: how surprising an image is, each with its source; and the calibration that makes p-values of them.

No likelihood alone tells what does not belong: models of photographs give smooth foreign images *fewer* bits
(Nalisnick 2019a, arXiv 1810.09136). The default score therefore looks at all terms of an image at once, both ways.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdvae_codec.config import ModelConfig
from vdvae_codec.errors import ConfigError, ModelError
from vdvae_codec.scoring.terms import Terms

FILE = "calibration.json"
VERSION = 1
FOLDS = 10
CLIP = 5.0  # robust standard deviations beyond which a reference image does not move the fit any further
FEWEST = 20  # reference images
SMALL_BPD = 1e-3  # added to rates before their logarithm


@dataclass(frozen=True)
class Scored:
    """An image: its terms and what it is. ``complexity_bits`` is the size of a quick classical coding of its pixels."""

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

        L^{>k} is the bound in which the k latent layers nearest to the data are drawn from their priors given those
        above: what the image needs of its own details beyond what its semantics imply. High is surprising.
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
    own distributions cost (a typicality test of each resolution, Nalisnick 2019b, arXiv 1906.02994); kl/N: log2 KL of
    live latent layer N per dim; llr/K: LLR^{>k}; complexity: log2 of the general coder's bits per dim; ratio: log2 of
    the model's bits by the general coder's; colour/2, colour/3: log2 of a later colour's bits by the first one's.
    """
    terms, dims = scored.terms, scored.dims
    found: dict[str, float] = {}
    parts = (terms.pixel_bits, terms.expected_bits, [1.0] * len(terms.pixel_bits))
    sums = [{stride: bits for stride, (_, bits) in config.by_stride((), part).items()} for part in parts]
    for stride, layers in sums[2].items():
        if not layers:
            continue
        share = dims * layers / stride**2  # about the sub-pixels of these layers
        bits, expected = sums[0][stride], sums[1][stride]
        found[f"rate/{stride}"] = math.log2(bits / share + SMALL_BPD)
        found[f"excess/{stride}"] = (bits - expected) / share
    for n, bits in enumerate(terms.kl_bits):
        if bits:
            found[f"kl/{n}"] = math.log2(max(bits, 0) / dims + SMALL_BPD)
    first, *later = terms.colour_bits
    for n, bits in enumerate(later, 2):
        found[f"colour/{n}"] = math.log2((max(bits, 0) / dims + SMALL_BPD) / (max(first, 0) / dims + SMALL_BPD))
    found |= {f"llr/{k}": value for k, value in enumerate(scored.llr_bpd, 1)}
    found["complexity"] = math.log2(scored.complexity_bits / dims + SMALL_BPD)
    found["ratio"] = math.log2((terms.bound_bits / dims + SMALL_BPD) / (scored.complexity_bits / dims + SMALL_BPD))
    return found


@dataclass(frozen=True)
class Fit:
    """A robust Gaussian: medians, median absolute deviations, and the covariances of what is clipped at CLIP of them.

    The covariances are shrunk towards none by d / (n + d).
    """

    centre: np.ndarray  # (d,)
    scale: np.ndarray  # (d,)
    precision: np.ndarray  # (d, d)

    @classmethod
    def of(cls, vectors: np.ndarray) -> Fit:
        """Of reference vectors (n, d) float64."""
        n, d = vectors.shape
        centre = np.median(vectors, 0)
        low, high = np.quantile(vectors, (0.05, 0.95), 0)
        scale = np.maximum(1.4826 * np.median(np.abs(vectors - centre), 0), (high - low) / 10 + 1e-6)
        z = ((vectors - centre) / scale).clip(-CLIP, CLIP)
        covariance, weight = z.T @ z / n, d / (n + d)
        return cls(centre, scale, np.linalg.inv((1 - weight) * covariance + weight * np.eye(d)))

    def distance(self, vectors: np.ndarray) -> np.ndarray:
        """Mahalanobis distances (m,) of vectors (m, d), by sqrt(d): about 1 for images that belong."""
        z = (vectors - self.centre) / self.scale
        out: np.ndarray = np.sqrt(np.einsum("nd,de,ne->n", z, self.precision, z) / len(self.centre))
        return out


@dataclass(frozen=True)
class Calibration:
    """Reference images of one model: the vectors, and distances of each from a fit to the other folds."""

    digest: str  # of the model, hex
    source: str  # what the reference images are
    samples: int  # of the bound
    names: tuple[str, ...]  # of the features
    vectors: np.ndarray  # (n, d) float64
    bpd: np.ndarray  # (n,)
    fit: Fit
    distances: np.ndarray  # (n,), sorted

    @classmethod
    def of(
        cls, digest: str, source: str, samples: int, names: Sequence[str], vectors: np.ndarray, bpd: np.ndarray
    ) -> Calibration:
        """Raises ModelError for too few images. Neighbours share a fold: images of one kind stay together."""
        n = len(vectors)
        if n < FEWEST:
            raise ModelError(f"{source}: {n} images are too few to calibrate on; at least {FEWEST} are needed")
        distances = np.empty(n)
        for fold in np.array_split(np.arange(n), min(FOLDS, n)):
            distances[fold] = Fit.of(np.delete(vectors, fold, 0)).distance(vectors[fold])
        return cls(digest, source, samples, tuple(names), vectors, bpd, Fit.of(vectors), np.sort(distances))

    def surprise(self, vector: np.ndarray) -> float:
        """The default score, ``ood``: the distance of a vector (d,) from the reference; about 1 if it belongs."""
        return float(self.fit.distance(vector[None])[0])

    def p_value(self, surprise: float) -> float:
        """The share of reference images that are as surprising (conformal: Laxhammar 2010; Vovk 2005).

        Of images like the reference ones, a share p has a p-value of at most p. Beyond the most surprising of n
        reference images, 1/(n + 1) falls exponentially, as the upper tenth of their distances does.
        """
        n = len(self.distances)
        above = n - int(np.searchsorted(self.distances, surprise, "left"))
        if above:
            return (1 + above) / (1 + n)
        start = self.distances[-(1 + n // 10)]
        fall = max(float((self.distances[self.distances >= start] - start).mean()), 1e-3)
        return math.exp((self.distances[-1] - surprise) / fall) / (1 + n)

    def typicality(self, bpd: float) -> float:
        """|bpd - mean of the reference|: two-sided (Nalisnick 2019b, arXiv 1906.02994, eq. 4, for single images)."""
        return abs(bpd - float(self.bpd.mean()))

    def vector(self, scored: Scored, config: ModelConfig) -> np.ndarray:
        """(d,) float64; what an image has not, as the colours of a grey one, is as usual."""
        found = features(scored, config)
        return np.array([found.get(name, usual) for name, usual in zip(self.names, self.fit.centre)])

    def save(self, path: Path) -> None:
        values: dict[str, Any] = {
            "version": VERSION, "digest": self.digest, "source": self.source, "samples": self.samples,
            "features": list(self.names), "vectors": self.vectors.round(5).tolist(), "bpd": self.bpd.round(5).tolist(),
        }
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(values, separators=(",", ":")) + "\n")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, digest: str, samples: int) -> Calibration:
        """Raises ModelError if the file is damaged, of another model, or of another number of samples."""
        try:
            values = json.loads(path.read_text())
            if values["version"] != VERSION:
                raise ConfigError(f"version {values['version']}")
            vectors, bpd = np.array(values["vectors"], np.float64), np.array(values["bpd"], np.float64)
            names = values["features"]
            if vectors.shape != (len(bpd), len(names)):
                raise ConfigError("sizes differ")
            made = cls.of(values["digest"], values["source"], values["samples"], names, vectors, bpd)
        except (OSError, KeyError, TypeError, ValueError, ConfigError) as error:
            raise ModelError(f"{path}: cannot be read as a calibration ({error})") from error
        if made.digest != digest:
            raise ModelError(f"{path}: belongs to the model with digest {made.digest}; calibrate this one again")
        if made.samples != samples:
            raise ModelError(f"{path}: was made with --samples {made.samples}; calibrate again, or score so")
        return made


def calibrate(scored: Sequence[Scored], config: ModelConfig, digest: str, source: str, samples: int) -> Calibration:
    """Reference statistics of a model from scored images that belong. Raises ModelError for too few."""
    found = [features(s, config) for s in scored]
    names = sorted({name for f in found for name in f})
    vectors = np.array([[f.get(name, math.nan) for name in names] for f in found]).reshape(-1, len(names))
    for column in vectors.T:  # a view
        if np.isnan(column).any():
            column[np.isnan(column)] = np.nanmedian(column)
    bpd = np.array([s.bpd for s in scored])
    return Calibration.of(digest, source, samples, names, vectors, bpd)


def row(scored: Scored, config: ModelConfig, calibration: Calibration | None) -> dict[str, Any]:
    """What is printed and written of an image: scores, then terms."""
    values: dict[str, Any] = {
        "name": scored.name, "width": scored.width, "height": scored.height, "channels": scored.channels,
        "bpd": scored.bpd, "corrected_bpd": scored.corrected_bpd,
    }
    if calibration is not None:
        surprise = calibration.surprise(calibration.vector(scored, config))
        values |= {"ood": surprise, "p": calibration.p_value(surprise)}
        values["typicality"] = calibration.typicality(scored.bpd)
    return values | {
        "llr_bpd": list(scored.llr_bpd), "complexity_bits": scored.complexity_bits,
        **{key: list(value) if isinstance(value, tuple) else value
           for key, value in dataclasses.asdict(scored.terms).items()},
    }
