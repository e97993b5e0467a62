"""Conversions to RGB, undone: what real decoders give, what they do not, and damage."""

from __future__ import annotations

import dataclasses
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vdvae_codec.api import cells_in, compress, decode, decompress, info, rates
from vdvae_codec.colours import CONVERSIONS, MAX_ODD, Conversion, mirrored, name, redo, undo
from vdvae_codec.container import Container
from vdvae_codec.errors import FormatError
from vdvae_codec.images import write_image
from vdvae_codec.sets import Source, read_archive, write_archive

JPEG, PHOTOCD = CONVERSIONS[0], CONVERSIONS[2]


def decoded(photo: np.ndarray, format: str, **options: int) -> np.ndarray:
    """(H, W, 3) uint8: a photograph through a lossy file."""
    file = BytesIO()
    Image.fromarray(photo).save(file, format, **options)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def scanned(photo: np.ndarray) -> np.ndarray:
    """As a PhotoCD would hold it: light, and colours at half the resolution, cut to whole steps."""
    steps, _ = PHOTOCD.to_steps(photo.reshape(-1, 3).astype(np.int64))
    steps = steps.reshape(photo.shape)
    kept = np.pad(steps[::2, ::2, 1:], ((0, 1), (0, 1), (0, 0)), "edge")  # between them lie their means
    steps[::2, 1::2, 1:] = kept[:-1, :-1] + kept[:-1, 1:] + 1 >> 1
    steps[1::2, ::2, 1:] = kept[:-1, :-1] + kept[1:, :-1] + 1 >> 1
    steps[1::2, 1::2, 1:] = kept[:-1, :-1] + kept[:-1, 1:] + kept[1:, :-1] + kept[1:, 1:] + 2 >> 2
    return PHOTOCD.to_rgb(steps).astype(np.uint8)


@pytest.mark.parametrize("quality", [50, 90, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_decoded_jpegs_are_recognised(photo: np.ndarray, quality: int, subsampling: int) -> None:
    pixels = decoded(photo, "JPEG", quality=quality, subsampling=subsampling)
    coded, how = undo(pixels)
    assert name(how) == "JPEG" and len(how) <= 2 + 7 * 8
    assert np.array_equal(redo(coded, how), pixels)
    assert coded.dtype == np.uint8 and coded.shape == pixels.shape


def test_decoded_webps_are_recognised(photo: np.ndarray) -> None:
    pixels = decoded(photo, "WEBP", quality=80)
    coded, how = undo(pixels)
    assert name(how) == "WebP" and np.array_equal(redo(coded, how), pixels)


def test_scans_are_recognised(photo: np.ndarray) -> None:
    pixels = scanned(photo)
    coded, how = undo(pixels)
    assert name(how) == "PhotoCD" and np.array_equal(redo(coded, how), pixels)


def test_saturated_colours_find_steps_that_are_clipped_to_them(photo: np.ndarray) -> None:
    bright = (3 * (photo.astype(int) - 90)).clip(0, 255).astype(np.uint8)
    assert ((bright == 0) | (bright == 255)).any(-1).mean() > 0.3
    pixels = decoded(bright, "JPEG", quality=95, subsampling=0)
    coded, how = undo(pixels)
    assert name(how) == "JPEG" and np.array_equal(redo(coded, how), pixels)


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda c: c.name)
def test_steps_whose_colour_is_not_clipped_do_not_wrap(conversion: Conversion) -> None:
    levels = np.arange(0, 256, 5)
    steps = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    whole = (conversion.formula(steps) == conversion.to_rgb(steps)).all(-1)
    assert 0.05 < whole.mean() < 0.5
    light, differences = steps[whole, :1], steps[whole, 1:] - np.array(conversion.middle)
    assert (light + differences).min() >= -1 and (light + differences).max() <= 256  # the cuts are worth one step


def test_other_images_stay_as_they_are(photo: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    grey = photo[..., :1].repeat(3, 2)
    small = decoded(photo, "JPEG")[:32, :32]
    noise = rng.integers(0, 256, (100, 100, 3)).astype(np.uint8)
    for pixels in (photo, photo[..., :1], grey, small, noise):
        coded, how = undo(pixels)
        assert coded is pixels and how == b"" and redo(coded, how) is coded


def test_pixels_that_do_not_fit_are_kept(photo: np.ndarray) -> None:
    pixels = decoded(photo, "JPEG").copy()
    rng = np.random.default_rng(0)
    places = rng.choice(pixels.shape[0] * pixels.shape[1], int(MAX_ODD * pixels.size / 3), replace=False)
    pixels.reshape(-1, 3)[places] = photo.reshape(-1, 3)[places]  # a quarter fits by chance
    coded, how = undo(pixels)
    assert name(how) == "JPEG" and len(how) > len(places) * 7 / 3
    assert np.array_equal(redo(coded, how), pixels)
    pixels[:10] = photo[:10]
    assert undo(pixels)[1] == b""


def test_damage_is_named(photo: np.ndarray) -> None:
    coded, how = undo(decoded(photo, "JPEG"))
    place = (photo.size // 3).to_bytes(4, "little")  # behind the last pixel
    for bad in (b"\x09", how + b"x", how[:1] + b"\4", how[:2] + b"\xff" * 7, how[:2] + place + b"rgb"):
        with pytest.raises(FormatError, match="colours"):
            redo(coded, bad)
    with pytest.raises(FormatError, match="colours"):
        redo(coded[..., :1], how)
    assert name(b"\x09") == "conversion 9"


def test_files_are_smaller_for_it_and_hold_the_same_pixels(photo: np.ndarray) -> None:
    sizes = {}
    off = scanned(photo).clip(0, 254) + np.uint8([0, 1, 0])  # as hard to code, but no formula gives it
    for kind, pixels in (("plain", off), ("scanned", scanned(photo))):
        data, report = compress(write_image(pixels, {}, ".png"), kind, fallback=False)
        shown = info(data)
        assert (shown["version"], shown["colours"]) == ((1, "") if kind == "plain" else (3, "PhotoCD"))
        assert report.colours == shown["colours"]
        assert decompress(data)[0] == write_image(pixels, {}, ".png")
        rate = rates(data)
        assert rate["elbo_bpd"] == pytest.approx(rate["net_bpd"], rel=0.02)
        sizes[kind] = len(data)
    assert sizes["scanned"] < 0.75 * sizes["plain"]


def test_archives_undo_the_conversion_of_each_image(photo: np.ndarray) -> None:
    images = {"a.png": decoded(photo, "JPEG"), "b.png": photo, "c.png": photo[..., :1], "d.png": scanned(photo)}
    file = BytesIO()
    write_archive([Source(key, pixels) for key, pixels in images.items()], file)
    members = {m.name: m for m in read_archive(file, lost=pytest.fail)}
    assert [name(m.entry.metadata.get("colours", b"")) for m in members.values()] == ["JPEG", "", "", "PhotoCD"]
    for key, pixels in images.items():
        assert np.array_equal(members[key].pixels, pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_missing_levels_are_left_out(photo: np.ndarray, channels: int) -> None:
    stretched = ((photo[..., :channels].astype(float) - 20) * 1.3).round().clip(0, 255).astype(np.uint8)
    coded, how = undo(stretched)
    assert name(how) == "stretched" and len(how) == 1 + 33 * channels
    assert np.array_equal(redo(coded, how), stretched)
    assert all(len(np.unique(coded[..., c])) == np.ptp(coded[..., c]) + 1 for c in range(channels))


def test_files_of_stretched_images_are_as_small_as_if_all_levels_were_there(photo: np.ndarray) -> None:
    tones = (photo.astype(float) - 20) * 1.3
    spread = np.random.default_rng(0).uniform(-0.65, 0.65, tones.shape)
    stretched, dithered = (t.round().clip(0, 255).astype(np.uint8) for t in (tones, tones + spread))
    sizes = [len(compress(write_image(p, {}, ".png"), "x", fallback=False)[0]) for p in (stretched, dithered)]
    assert sizes[0] < 0.95 * sizes[1]  # less by log2(1.3) bits a sub-pixel, where noise hides the levels


def test_damaged_levels_are_named(photo: np.ndarray) -> None:
    coded, how = undo((photo // 2 * 2 + 1).astype(np.uint8))
    assert name(how) == "stretched"
    for bad in (how[:-1], how + b"x", how[:1] + b"\xff" + how[2:], how[:2] + bytes(32) + how[34:]):
        with pytest.raises(FormatError, match="colours"):
            redo(coded, bad)


@pytest.mark.parametrize("flips", range(4))
def test_colours_between_others_are_not_coded(photo: np.ndarray, flips: int) -> None:
    """Whichever pixels of 2x2 hold the colours that were kept."""
    pixels = mirrored(scanned(photo), flips)
    coded, how = undo(pixels)
    assert how[1] == flips and np.array_equal(redo(coded, how), pixels)
    data, _ = compress(write_image(pixels, {}, ".png"), "scan", fallback=False)
    assert {"colours", "cells"} <= set(info(data)["metadata"])
    assert decompress(data)[0] == write_image(pixels, {}, ".png")
    container = Container.from_bytes(data)
    cells = cells_in(container)
    assert cells is not None and cells.shape == (60, 80) and cells.mean() > 0.7
    for bad in (b"", container.metadata["cells"] + b"x"):
        with pytest.raises(FormatError, match="cells"):
            decode(dataclasses.replace(container, metadata=container.metadata | {"cells": bad}))
    changed = bytearray(container.metadata["cells"])
    changed[7] ^= 255
    with pytest.raises(FormatError):
        decode(dataclasses.replace(container, metadata=container.metadata | {"cells": bytes(changed)}))


def test_grey_images_in_three_colours_cost_no_more_than_one(photo: np.ndarray) -> None:
    grey = photo[..., :1]
    sizes = [
        len(compress(write_image(pixels, {}, ".png"), "grey", fallback=False)[0])
        for pixels in (grey.repeat(3, 2), grey)
    ]
    assert sizes[0] < 1.1 * sizes[1]


@pytest.mark.parametrize("height, width", [(91, 117), (100, 151), (119, 100)])
def test_scans_of_odd_sizes_come_back(photo: np.ndarray, height: int, width: int) -> None:
    pixels = np.ascontiguousarray(scanned(photo)[:height, :width])
    data, _ = compress(write_image(pixels, {}, ".png"), "scan", fallback=False)
    assert "cells" in info(data)["metadata"] and decompress(data)[0] == write_image(pixels, {}, ".png")
