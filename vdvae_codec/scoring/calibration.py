"""Calibrations: what a model's features look like on images that belong, and the p-values that this makes possible."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdvae_codec.errors import ModelError
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.scoring.scores import Scored, features

FILE = "calibration.json"
VERSION = 1
FOLDS = 10
CLIP = 5.0  # robust standard deviations beyond which a reference image does not move the fit any further
FEWEST = 20  # reference images


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
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

    def vector(self, found: Mapping[str, float]) -> np.ndarray:
        """(d,) float64 of an image's ``features``; what it has not, as the colours of a grey one, is as usual."""
        return np.array([found.get(name, usual) for name, usual in zip(self.names, self.fit.centre)])

    def save(self, path: Path) -> None:
        """Writes a calibration.json, complete or not at all."""
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
                raise ValueError(f"version {values['version']}")
            vectors, bpd = np.array(values["vectors"], np.float64), np.array(values["bpd"], np.float64)
            names = values["features"]
            if bpd.ndim != 1 or vectors.shape != (len(bpd), len(names)):
                raise ValueError("sizes differ")
            if not (np.isfinite(vectors).all() and np.isfinite(bpd).all()):
                raise ValueError("not all numbers are finite")
            made = cls.of(values["digest"], values["source"], values["samples"], names, vectors, bpd)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read as a calibration ({error})") from error
        if made.digest != digest:
            raise ModelError(f"{path}: belongs to the model with digest {made.digest}; calibrate this one again")
        if made.samples != samples:
            raise ModelError(f"{path}: was made with samples = {made.samples}; calibrate again, or score so")
        return made


def calibrate(scored: Sequence[Scored], config: ModelConfig, digest: str, source: str, samples: int) -> Calibration:
    """Reference statistics of a model (its digest in hex) from scored images that belong.

    ``samples`` is that of their bounds; ``source`` says what they are. Raises ModelError for too few.
    """
    found = [features(s, config) for s in scored]
    if not found:
        raise ModelError("no images to calibrate on")
    names = sorted({name for f in found for name in f})
    vectors = np.array([[f.get(name, math.nan) for name in names] for f in found]).reshape(-1, len(names))
    for column in vectors.T:  # a view
        if np.isnan(column).any():
            column[np.isnan(column)] = np.nanmedian(column)
    bpd = np.array([s.bpd for s in scored])
    return Calibration.of(digest, source, samples, names, vectors, bpd)
