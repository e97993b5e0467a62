"""The report: one HTML page that holds all it shows, and opens without a network."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from vdvae_codec.errors import ImageError, VdvaeCodecError
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.scoring.calibration import Calibration
from vdvae_codec.scoring.output import heat_picture
from vdvae_codec.scoring.page import PAGE
from vdvae_codec.scoring.score import Source, read_pixels
from vdvae_codec.scoring.scores import Row
from vdvae_codec.scoring.terms import image_terms

SHOWN = 24  # most surprising images, and as many most typical ones, with pictures
THUMB, LARGE = 144, 640  # largest sides of pictures, in pixels
BINS = 40
Pictures = dict[str, str]  # data URIs by what they show


def make_report(
    rows: Sequence[Row], images: Mapping[str, Source], model: VDVAE, calibration: Calibration | None, name: str,
    fpr: float,
) -> str:
    """The page (HTML) for rows (``scores.row``), the most surprising first, of the model that is called ``name``.

    Pictures are read again from ``images``, by name. Rows with p of at most ``fpr`` are flagged. Raises VdvaeCodecError
    if there are no rows.
    """
    if not rows:
        raise VdvaeCodecError("no images were scored: there is nothing to report")
    count = min(SHOWN, (len(rows) + 1) // 2)
    chosen = [*range(count), *range(max(count, len(rows) - count), len(rows))]
    shown = tqdm(chosen, desc="pictures", unit="image", disable=None)
    pictures = {n: found for n in shown if (found := pictures_of(model, images, rows[n]["name"]))}
    data = {
        "layers": layer_names(model.config), "calibrated": calibration is not None, "fpr": fpr, "pictures": pictures,
        "rows": [compact(row, model.config) for row in rows], "first": count,
    }
    values = {
        "TITLE": html.escape(f"{len(rows)} images, model {name}"),
        "SUMMARY": html.escape(summary(rows, calibration, fpr)),
        "HISTOGRAM": histogram(rows, calibration),
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub("%([A-Z]+)%", lambda match: values[match[1]], PAGE)


def summary(rows: Sequence[Row], calibration: Calibration | None, fpr: float) -> str:
    if calibration is None:
        return "This model has no calibration: nothing is flagged; sorted by bits per dim."
    flagged = sum(row["p"] <= fpr for row in rows)
    reference = f"calibrated on {len(calibration.bpd)} images ({calibration.source})"
    return f"{flagged} of {len(rows)} flagged at p <= {fpr}; {reference}."


def pictures_of(model: VDVAE, images: Mapping[str, Source], name: str) -> Pictures:
    """An image, small and large, and its bits; nothing if it can no longer be read."""
    try:
        pixels = read_pixels(images[name], name)
    except (ImageError, KeyError):
        return {}
    heat = heat_picture(image_terms(model, [pixels])[1][0])
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return {"thumb": uri(image, THUMB), "image": uri(image, LARGE), "heat": uri(heat, LARGE)}


def layer_names(config: ModelConfig) -> list[str]:
    """Of what ``compact`` lists as bars: KL, then pixels, each by resolution."""
    kinds = zip(("KL", "pixels"), shown_strides(config))
    return [f"{kind} 1/{stride}" for kind, strides in kinds for stride in strides]


def shown_strides(config: ModelConfig) -> tuple[list[int], list[int]]:
    """Those that have latent layers, and those that have pixel layers, from coarse to fine."""
    latents, pixels = ([la.stride for la in config.layers if bool(la.holds) is held] for held in (False, True))
    return list(dict.fromkeys(latents)), list(dict.fromkeys(pixels))


def compact(row: Row, config: ModelConfig) -> Row:
    """What the page needs of a row; bars are bits per dim of the image."""
    dims = row["width"] * row["height"] * row["channels"]
    sums = config.by_stride(row["kl_bits"], row["pixel_bits"])
    bars = [round(sums[s][kind] / dims, 4) for kind, strides in enumerate(shown_strides(config)) for s in strides]
    keys = ("name", "bpd", "corrected_bpd", "ood", "p", "typicality")
    found: Row = {key: row[key] for key in keys if key in row} | {"bars": bars}
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in found.items()}


def uri(image: Image.Image, side: int) -> str:
    """A picture of at most ``side`` pixels a side as a data URI; small ones are enlarged by whole factors."""
    factor = max(1, side // (2 * max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((side, side))
    out = BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def histogram(rows: Sequence[Row], calibration: Calibration | None) -> str:
    """SVG: the images' scores above the axis, the calibration images' below."""
    key = "ood" if calibration is not None else "bpd"
    ours = np.array([row[key] for row in rows])
    theirs = calibration.distances if calibration is not None else np.zeros(0)
    both = np.concatenate([ours, theirs])
    edges = np.linspace(both.min(), max(float(np.quantile(both, 0.98)) * 1.1, float(both.min()) + 1e-6), BINS + 1)
    width, half = 14, 90
    bars = []
    for values, sign, kind in ((ours, -1, "ours"), (theirs, 1, "theirs")):
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        for n, c in enumerate(counts):
            height = half * c / max(1, counts.max())
            y = half - height if sign < 0 else half
            place = f'x="{n * width}" y="{y:.1f}" width="{width - 2}" height="{height:.1f}"'
            title = f"<title>{edges[n]:.3g} to {edges[n + 1]:.3g}: {c}</title>"
            bars.append(f'<rect class="{kind}" {place}>{title}</rect>')
    labels = "".join(
        f'<text x="{n * width}" y="{2 * half + 16}">{edges[n]:.3g}</text>' for n in range(0, BINS + 1, BINS // 4)
    )
    return (
        f'<svg id="histogram" viewBox="0 0 {BINS * width + 40} {2 * half + 22}" role="img">{"".join(bars)}'
        f'<line x1="0" x2="{BINS * width}" y1="{half}" y2="{half}"/>{labels}</svg>'
        f"<p><b class='ours'>above</b>: {key} of these images; "
        "<b class='theirs'>below</b>: of the calibration images.</p>"
    )
