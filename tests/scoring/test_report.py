"""The report: one page that holds all it shows."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vdvae_codec.codec.store import load_released
from vdvae_codec.errors import VdvaeCodecError
from vdvae_codec.scoring.report import make_report
from vdvae_codec.scoring.score import find_calibration, named, score

CHROMIUM = shutil.which("chromium")


def report(model: Path, folder: Path) -> str:
    """Of all images of a folder that can be read, and of one that has gone."""
    (folder / "broken.png").unlink()
    rows = score(folder, model=str(model))
    rows.sort(key=lambda r: (r.get("p", 1.0), -r["bpd"]))
    images = dict(named(folder))
    Path(rows[0]["name"]).unlink()
    released = load_released(str(model), "cpu")
    calibration = find_calibration(released, 1)
    return make_report(rows, images, released.model, calibration, "<&>", 0.02)


def test_report_holds_everything(calibrated: Path, mixed: Path) -> None:
    (mixed / "photo00.png").rename(mixed / "<b>photo & %DATA%.png")
    page = report(calibrated, mixed)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found[1])
    assert len(data["rows"]) == 15 and len(data["pictures"]) == 14 and "<b>photo & %DATA%.png" in str(data)
    assert data["layers"] == ["KL 1/8", "KL 1/4", "pixels 1/8", "pixels 1/4", "pixels 1/2"]
    for row in data["rows"]:
        assert len(row["bars"]) == 5 and sum(row["bars"]) == pytest.approx(row["bpd"], abs=0.01)
    for picture in data["pictures"].values():
        base64.b64decode(picture["heat"].partition(",")[2], validate=True)
    assert "<title>15 images, model &lt;&amp;&gt;</title>" in page and "calibrated on 80 images (crops)" in page
    outside = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|src=|url\(|@import", outside)  # nothing is fetched


def test_report_without_calibration(tiny_folder: Path, mixed: Path) -> None:
    page = report(tiny_folder, mixed)
    assert "no calibration" in page and '"calibrated":false' in page


def test_report_of_nothing(tiny_folder: Path) -> None:
    with pytest.raises(VdvaeCodecError, match="no images"):
        make_report([], {}, load_released(str(tiny_folder), "cpu").model, None, "tiny", 0.01)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_report_in_a_browser(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    probe = """<script>
      document.querySelector("#head th").click();
      document.querySelector("#rows tr:last-child").click();
      document.title = [document.querySelectorAll("#rows tr").length, document.querySelectorAll("figure img").length,
        document.querySelector("dialog").open, document.querySelector("#heat").naturalWidth > 0].join(" ");
    </script></body>"""
    (tmp_path / "probe.html").write_text(report(calibrated, mixed).replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'probe.html'}"],
        capture_output=True, text=True, timeout=120,
    )
    assert "<title>15 14 true" in done.stdout
