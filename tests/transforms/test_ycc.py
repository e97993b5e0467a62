"""Conversions to RGB, inverted: what real decoders give, what they do not, and damage."""

from __future__ import annotations

import numpy as np
import pytest
from image_samples import decoded, scanned

from vdvae_codec.errors import FormatError
from vdvae_codec.transforms.ycc import CONVERSIONS, MAX_ODD, Conversion, colours_in

JPEG, WEBP, PHOTOCD = CONVERSIONS


def recognised(pixels: np.ndarray, conversion: Conversion) -> tuple[np.ndarray, bytes]:
    """What a conversion makes of pixels that it alone gives, checked to come back."""
    for other in CONVERSIONS:
        done = other.forward(pixels)
        assert (done is None) == (other is not conversion)
    done = conversion.forward(pixels)
    assert done is not None
    coded, side_info = done
    assert coded.dtype == np.uint8 and coded.shape == pixels.shape
    assert np.array_equal(conversion.inverse(coded, side_info), pixels)
    return coded, side_info


@pytest.mark.parametrize("quality", [50, 90, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_decoded_jpegs_are_recognised(photo: np.ndarray, quality: int, subsampling: int) -> None:
    _, side_info = recognised(decoded(photo, "JPEG", quality=quality, subsampling=subsampling), JPEG)
    assert len(side_info) <= 7 * 8


def test_decoded_webps_are_recognised(photo: np.ndarray) -> None:
    recognised(decoded(photo, "WEBP", quality=80), WEBP)


def test_scans_are_recognised(photo: np.ndarray) -> None:
    coded, _ = recognised(scanned(photo), PHOTOCD)
    ycc, _ = PHOTOCD.to_ycc(scanned(photo).reshape(-1, 3).astype(np.int32))
    assert np.array_equal(coded[..., 1].ravel(), ycc[:, 0])
    assert np.array_equal((coded[..., 2] - coded[..., 1]).ravel(), (ycc[:, 1] - 156) % 256)


def test_saturated_colours_find_ycc_that_is_clipped_to_them(photo: np.ndarray) -> None:
    bright = (3 * (photo.astype(int) - 90)).clip(0, 255).astype(np.uint8)
    assert ((bright == 0) | (bright == 255)).any(-1).mean() > 0.3
    recognised(decoded(bright, "JPEG", quality=95, subsampling=0), JPEG)


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda c: c.name)
def test_ycc_whose_colour_is_not_clipped_does_not_wrap(conversion: Conversion) -> None:
    levels = np.arange(0, 256, 5)
    ycc = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    whole = (conversion.formula(ycc) == conversion.to_rgb(ycc)).all(-1)
    assert 0.05 < whole.mean() < 0.5
    light, differences = ycc[whole, :1], ycc[whole, 1:] - np.array(conversion.middle)
    assert (light + differences).min() >= -1 and (light + differences).max() <= 256  # the cuts are worth one level


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda c: c.name)
def test_formulas_need_no_more_than_32_bits(conversion: Conversion) -> None:
    corners = np.stack(np.meshgrid([-15, 0, 128, 255, 270], [-10, 0, 255, 265], [-10, 0, 255, 265]), -1)
    assert np.array_equal(conversion.formula(corners.astype(np.int32)), conversion.formula(corners.astype(np.int64)))


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda c: c.name)
def test_ycc_found_gives_the_colours(conversion: Conversion) -> None:
    ycc = np.random.default_rng(0).integers(0, 256, (5000, 3)).astype(np.int32)
    rgb = conversion.to_rgb(ycc)
    found, fits = conversion.to_ycc(rgb)
    assert np.array_equal(conversion.to_rgb(found)[fits], rgb[fits])
    assert fits[((rgb > 0) & (rgb < 255)).all(-1)].all() and found.min() >= 0 and found.max() <= 255


def test_other_images_stay_as_they_are(photo: np.ndarray) -> None:
    grey = photo[..., :1].repeat(3, 2)
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    for pixels in (photo, photo[..., :1], grey, noise):
        assert all(conversion.forward(pixels) is None for conversion in CONVERSIONS)


def test_pixels_that_do_not_fit_are_kept(photo: np.ndarray) -> None:
    pixels = decoded(photo, "JPEG").copy()
    rng = np.random.default_rng(0)
    places = rng.choice(pixels.shape[0] * pixels.shape[1], int(MAX_ODD * pixels.size / 3), replace=False)
    pixels.reshape(-1, 3)[places] = photo.reshape(-1, 3)[places]  # a quarter fits by chance
    _, side_info = recognised(pixels, JPEG)
    assert len(side_info) > len(places) * 7 / 3
    pixels[:10] = photo[:10]
    assert JPEG.forward(pixels) is None


def test_colours_in_an_image(photo: np.ndarray) -> None:
    found, where = colours_in(photo.reshape(-1, 3))
    assert np.array_equal(found, np.unique(photo.reshape(-1, 3), axis=0))
    assert np.array_equal(found[where], photo.reshape(-1, 3))


def test_damage_is_named(photo: np.ndarray) -> None:
    done = JPEG.forward(decoded(photo, "JPEG"))
    assert done is not None
    coded, side_info = done
    place = (photo.size // 3).to_bytes(4, "little")  # behind the last pixel
    for bad in (side_info + b"x", b"\xff" * 7, place + b"rgb"):
        with pytest.raises(FormatError, match="side_info: JPEG"):
            JPEG.inverse(coded, bad)
    with pytest.raises(FormatError, match="side_info: JPEG"):
        JPEG.inverse(coded[..., :1], side_info)
