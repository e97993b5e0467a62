import dataclasses
from pathlib import Path

import numpy as np
import pytest
from image_samples import CODABLE, FILES_ONLY, GREY, ICC, RGB, exif, natural, saved
from PIL import Image

from vdvae_codec.images.chunks import chunks
from vdvae_codec.images.classical import best_file, quick_size, rough_size
from vdvae_codec.images.files import file_pixels, picture_of, read_picture, with_channels, write_image


@pytest.mark.parametrize("name", CODABLE)
def test_best_file(name: str) -> None:
    picture = read_picture(CODABLE[name], name)
    data, suffix = best_file(picture)
    assert len(data) <= len(CODABLE[name])
    assert picture.pixels is not None
    assert np.array_equal(with_channels(file_pixels(data), picture.pixels.shape[2]), picture.pixels)
    if len(data) == len(picture.data):
        assert data is picture.data and suffix == picture.suffix
    else:
        assert suffix == read_picture(data, "x").suffix in (".webp", ".png")


def test_best_file_of_a_large_flat_picture_is_webp() -> None:
    flat = np.repeat(np.repeat(natural(20, 20, 3), 16, 0), 16, 1)
    data, suffix = best_file(read_picture(saved(flat, "PNG"), "x.png"))
    assert suffix == ".webp" and np.array_equal(file_pixels(data), flat)


def test_best_file_of_rgba_leaves_the_frame_to_the_container() -> None:
    pixels = natural(64, 64, 4)
    pixels[:20, :, 3] = 0  # colours under full transparency count
    picture = read_picture(saved(pixels, "PNG", compress_level=0, exif=exif(), icc_profile=ICC), "x.png")
    data, _ = best_file(picture)
    assert data != picture.data
    assert np.array_equal(file_pixels(data), pixels)
    again, _ = dataclasses.replace(picture, data=b"", pixels=file_pixels(data)).to_bytes()
    assert list(chunks(again))[1:-1] == [c for c in chunks(picture.data) if c[0] in (b"iCCP", b"eXIf")]


def test_best_file_counts_metadata() -> None:
    noise = np.random.default_rng(0).bytes(5000)
    plain = read_picture(saved(RGB, "PNG", compress_level=9), "x.png")
    heavy = dataclasses.replace(plain, metadata={"xmp": noise})
    assert best_file(plain)[0] != plain.data
    assert best_file(heavy)[0] == plain.data


@pytest.mark.parametrize("name", sorted(FILES_ONLY))
def test_other_files_are_their_own_best(name: str) -> None:
    picture = read_picture(FILES_ONLY[name], name)
    data, suffix = best_file(picture)
    assert data is picture.data and suffix == Path(name).suffix


@pytest.mark.parametrize("pixels", [RGB, GREY, RGB[:1, :1], natural(1, 17000, 3), natural(300, 300, 3)])
def test_best_file_of_an_array(pixels: np.ndarray) -> None:
    data, suffix = best_file(picture_of(pixels))
    assert suffix in (".webp", ".png")
    assert np.array_equal(with_channels(file_pixels(data), pixels.shape[2]), pixels)


def mosaic(photo: np.ndarray, side: int, shrink: int) -> list[np.ndarray]:
    """Squares of a photograph at a fraction of its size."""
    image = Image.fromarray(photo)
    small = np.asarray(image.resize((image.width // shrink, image.height // shrink)))
    corners = ((y, x) for y in range(0, len(small) - side, side) for x in range(0, small.shape[1] - side, side))
    return [small[y : y + side, x : x + side] for y, x in corners]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side, shrink", [(28, 1), (28, 2), (32, 1), (32, 3), (64, 1)])
def test_rough_size_of_small_images_is_near_their_png(photo: np.ndarray, side: int, shrink: int, channels: int) -> None:
    for part in mosaic(photo, side, shrink):
        pixels = part[..., :channels]
        assert rough_size(pixels) == pytest.approx(len(write_image(pixels, {}, ".png")), rel=0.3)
    for level in (0, 77, 255):
        flat = np.full((side, side, channels), level, np.uint8)
        assert rough_size(flat) == pytest.approx(len(write_image(flat, {}, ".png")), abs=64)


def test_quick_size_of_larger_images_is_near_the_best_file(photo: np.ndarray) -> None:
    assert quick_size(photo) == pytest.approx(len(best_file(picture_of(photo))[0]), rel=0.1)
    grey = photo[..., :1]  # judged by its PNG, where a WebP is smaller
    assert quick_size(grey) == pytest.approx(len(best_file(picture_of(grey))[0]), rel=0.15)
