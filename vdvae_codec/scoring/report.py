"""The report: one HTML page that holds all it shows, and opens without a network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vdvae_codec.errors import ImageError
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.scoring.scores import Calibration
from vdvae_codec.scoring.stream import heat_picture, read_pixels
from vdvae_codec.scoring.terms import image_terms

SHOWN = 24  # most surprising images, and as many most typical ones, with pictures
THUMB, LARGE = 144, 640  # largest sides of pictures, in pixels
BINS = 40
Rows = Sequence[Mapping[str, Any]]


def make_report(
    rows: Rows, paths: Mapping[str, Path], model: VDVAE, calibration: Calibration | None, name: str, fpr: float
) -> str:
    """The page for rows (``scores.row``), the most surprising first; pictures are read again from ``paths``."""
    count = min(SHOWN, (len(rows) + 1) // 2)
    chosen = [*range(count), *range(max(count, len(rows) - count), len(rows))]
    pictures: dict[int, dict[str, str]] = {}
    for n in tqdm(chosen, desc="pictures", unit="image", disable=None):
        try:
            pixels = read_pixels(paths[rows[n]["name"]])
        except (ImageError, KeyError):
            continue  # it was there when it was scored
        heat = heat_picture(image_terms(model, [pixels])[1][0])
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        pictures[n] = {"thumb": uri(image, THUMB), "image": uri(image, LARGE), "heat": uri(heat, LARGE)}
    data = {
        "layers": layer_names(model), "calibrated": calibration is not None, "fpr": fpr, "pictures": pictures,
        "rows": [compact(row, model) for row in rows], "first": count,
    }
    flagged = sum(row.get("p", 1.0) <= fpr for row in rows)
    values = {
        "TITLE": html.escape(f"{len(rows)} images, model {name}"),
        "SUMMARY": html.escape(
            f"{flagged} of {len(rows)} flagged at p <= {fpr}; "
            f"calibrated on {len(calibration.bpd)} images ({calibration.source})."
            if calibration is not None else "This model has no calibration: nothing is flagged; sorted by bits per dim."
        ),
        "HISTOGRAM": histogram(rows, calibration),
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = PAGE
    for key, value in values.items():
        page = page.replace(f"%{key}%", value)
    return page


def layer_names(model: VDVAE) -> list[str]:
    """Of what ``compact`` lists as bars: KL, then pixels, each by resolution."""
    strides = shown_strides(model)
    return [f"{kind} 1/{stride}" for kind, some in zip(("KL", "pixels"), strides) for stride in some]


def shown_strides(model: VDVAE) -> tuple[list[int], list[int]]:
    """Those that have latent layers, and those that have pixel layers, from coarse to fine."""
    stages = model.config.stages
    return list({s.stride: 0 for s in stages if s.latents}), list({s.stride: 0 for s in stages if s.pixels})


def compact(row: Mapping[str, Any], model: VDVAE) -> dict[str, Any]:
    """What the page needs of a row; bars are bits per dim of the image."""
    dims = row["width"] * row["height"] * row["channels"]
    sums = model.config.by_stride(row["kl_bits"], row["pixel_bits"])
    bars = [round(sums[s][kind] / dims, 4) for kind, some in enumerate(shown_strides(model)) for s in some]
    keys = ("name", "bpd", "corrected_bpd", "ood", "p", "typicality")
    found = {key: row[key] for key in keys if key in row} | {"bars": bars}
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in found.items()}


def uri(image: Image.Image, side: int) -> str:
    """A picture of at most ``side`` pixels a side as a data URI; small ones are enlarged by whole factors."""
    factor = max(1, side // (2 * max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((side, side))
    out = BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def histogram(rows: Rows, calibration: Calibration | None) -> str:
    """SVG: the images' scores above the axis, the calibration images' below."""
    key = "ood" if calibration is not None else "bpd"
    ours = np.array([row[key] for row in rows])
    theirs = calibration.distances if calibration is not None else np.zeros(0)
    both = np.concatenate([ours, theirs])
    edges = np.linspace(both.min(), max(float(np.quantile(both, 0.98)) * 1.1, float(both.min()) + 1e-6), BINS + 1)
    width, half = 14, 90
    parts = []
    for values, sign, kind in ((ours, -1, "ours"), (theirs, 1, "theirs")):
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        for n, c in enumerate(counts):
            height = half * c / max(1, counts.max())
            y = half - height if sign < 0 else half
            place = f'x="{n * width}" y="{y:.1f}" width="{width - 2}" height="{height:.1f}"'
            title = f"<title>{edges[n]:.3g} to {edges[n + 1]:.3g}: {c}</title>"
            parts.append(f'<rect class="{kind}" {place}>{title}</rect>')
    labels = "".join(
        f'<text x="{n * width}" y="{2 * half + 16}">{edges[n]:.3g}</text>' for n in range(0, BINS + 1, BINS // 4)
    )
    return (
        f'<svg id="histogram" viewBox="0 0 {BINS * width + 40} {2 * half + 22}" role="img">{"".join(parts)}'
        f'<line x1="0" x2="{BINS * width}" y1="{half}" y2="{half}"/>{labels}</svg>'
        f"<p><b class='ours'>above</b>: {key} of these images; "
        "<b class='theirs'>below</b>: of the calibration images.</p>"
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>%TITLE%</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; }
#histogram { width: 100%; max-width: 44em; } rect.ours { fill: #c2452d; } rect.theirs { fill: #3b6ea5; }
b.ours { color: #c2452d; } b.theirs { color: #3b6ea5; }
#histogram line { stroke: #222; } #histogram text { font-size: 11px; }
.sheet { display: flex; flex-wrap: wrap; gap: 10px; }
.sheet figure { margin: 0; width: 148px; cursor: pointer; } .sheet img { max-width: 144px; max-height: 144px; }
figcaption { font-size: 12px; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th { cursor: pointer; text-align: left; border-bottom: 2px solid #999; }
td { border-bottom: 1px solid #ddd; padding: 2px 6px; overflow-wrap: anywhere; } tr.flagged td { background: #fbe9e5; }
.bar { display: flex; height: 13px; min-width: 14em; } .bar span { display: block; height: 100%; }
#legend span { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em; vertical-align: -2px; }
dialog { max-width: 92vw; } dialog img { max-width: 44vw; max-height: 80vh; image-rendering: pixelated; }
</style></head><body>
<h1>%TITLE%</h1><p id="summary">%SUMMARY%</p>
%HISTOGRAM%
<h2>Most surprising</h2><div class="sheet" id="surprising"></div>
<h2>Most typical</h2><div class="sheet" id="typical"></div>
<h2>All images</h2><p id="legend"></p>
<table><thead><tr id="head"></tr></thead><tbody id="rows"></tbody></table>
<dialog id="zoom"><form method="dialog"><button>Close</button></form><p id="caption"></p>
<img id="image" alt="the image"> <img id="heat" alt="bits of each pixel: dark for few, light for many"></dialog>
<script type="application/json" id="data">%DATA%</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const make = (tag, text, parent) => {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (parent) parent.append(e);
  return e;
};
const colour = n => `hsl(${(200 + 47 * n) % 360} 55% ${45 + 12 * (n % 3)}%)`;
const columns = ["p", "ood", "bpd", "corrected_bpd", "typicality", "name"].filter(c => c in data.rows[0]);
const shown = v => typeof v === "number" ? v.toFixed(4) : v;
data.rows.forEach((row, n) => { row.n = n; });
const zoom = row => {
  const p = data.pictures[row.n];
  if (!p) return;
  at("caption").textContent = `${row.name}: ${shown(row.bpd)} bits per dim`;
  at("image").src = p.image;
  at("heat").src = p.heat;
  at("zoom").showModal();
};
for (const row of data.rows) {
  const p = data.pictures[row.n];
  if (!p) continue;
  const figure = make("figure", undefined, at(row.n < data.first ? "surprising" : "typical"));
  make("img", undefined, figure).src = p.thumb;
  make("figcaption", `${row.name} (${data.calibrated ? "p " + shown(row.p) : shown(row.bpd)})`, figure);
  figure.onclick = () => zoom(row);
}
data.layers.forEach((name, n) => {
  make("span", undefined, at("legend")).style.background = colour(n);
  at("legend").append(name);
});
const most = Math.max(...data.rows.map(r => r.bars.reduce((a, b) => a + Math.max(b, 0), 0)), 1e-9);
const fill = () => {
  at("rows").replaceChildren();
  for (const row of data.rows) {
    const tr = make("tr", undefined, at("rows"));
    if (data.calibrated && row.p <= data.fpr) tr.className = "flagged";
    for (const c of columns) make("td", shown(row[c]), tr);
    const bar = make("div", undefined, make("td", undefined, tr));
    bar.className = "bar";
    row.bars.forEach((bits, n) => {
      const part = make("span", undefined, bar);
      part.style.width = `${100 * Math.max(bits, 0) / most}%`;
      part.style.background = colour(n);
      part.title = `${data.layers[n]}: ${bits} bits per dim`;
    });
    tr.onclick = () => zoom(row);
  }
};
let sorted = null, up = true;
for (const c of columns) {
  const th = make("th", c, at("head"));
  th.onclick = () => {
    up = sorted === c ? !up : true;
    sorted = c;
    data.rows.sort((a, b) => (a[c] < b[c] ? -1 : a[c] > b[c] ? 1 : 0) * (up ? 1 : -1));
    fill();
  };
}
make("th", "bits by layer", at("head"));
fill();
</script></body></html>
"""
