"""Writes the golden files of a format version: bytes once written, decoded for ever.

    python tests/data/golden/make.py

Used once for each format version, before its release. From then on these files are a promise: they are never written
again, and what changes tests/codec/test_golden.py breaks the files of users. Beside each file lies what it decodes to.
"""

from __future__ import annotations

import dataclasses
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from vdvae_codec.codec.archive import write
from vdvae_codec.images.files import Picture, picture_of, read_picture, read_rgb, write_image

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "codec")]

from codec_samples import COAST, screenshot  # noqa: E402
from image_samples import ICC, scanned  # noqa: E402

TIME = 1_600_000_000


def palette() -> bytes:
    """A PNG of a kind that no model codes."""
    out = BytesIO()
    image = Image.frombytes("P", (48, 40), bytes(n % 256 // 16 for n in range(48 * 40)))
    image.putpalette(np.random.default_rng(0).bytes(3 * 16))
    image.save(out, "PNG")
    return out.getvalue()


def put(name: str, pictures: list[Picture], segment: int = 10_000) -> None:
    """One file, and the images that it holds."""
    with (HERE / f"{name}.vdz").open("wb") as file:
        print(write(pictures, file, "photo-2", "cpu", segment=segment))
    for picture in pictures:
        path = HERE / name / picture.name if picture.name else HERE / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = picture.data or write_image(picture.pixels, picture.metadata, ".png")  # type: ignore[arg-type]
        path.write_bytes(data)


def main() -> None:
    photo, coast = read_rgb(HERE.parent / "photo.png"), read_rgb(COAST)
    put("rgb", [picture_of(coast[300:340, :530])])  # three tiles
    put("grey", [picture_of(photo[..., :1])])
    put("transformed", [picture_of(np.ascontiguousarray(scanned(coast[200:330, 300:480])[:129, :177]))])
    put("stored", [read_picture(palette(), "")])
    profiled = dataclasses.replace(picture_of(photo[40:88, 20:84], "sub/profiled.png", TIME + 1), metadata={"icc": ICC})
    put(
        "archive",
        [
            picture_of(photo[:48, :64], "a.png", TIME), profiled, picture_of(screenshot(0, 64, 48), "screen.png"),
            picture_of(photo[60:100, 100:150, :1], "z-größe.png", -1),
        ],
        segment=2,
    )  # fmt: skip
    around = PngImagePlugin.PngInfo()
    around.add_text("Title", "with more than pixels")
    around.add(b"gAMA", (45455).to_bytes(4, "big"))
    out = BytesIO()
    Image.fromarray(photo[:48, :64]).save(out, "PNG", pnginfo=around, dpi=(300, 300))
    rows = write_image(photo[50:90, :51], {}, ".bmp")
    put("framed", [read_picture(out.getvalue() + b"behind", "a.png"), read_picture(rows, "b.bmp")])


if __name__ == "__main__":
    main()
