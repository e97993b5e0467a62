"""The page of a report: a template in which %TITLE%, %SUMMARY%, %HISTOGRAM% and %DATA% (JSON) are filled in."""

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
