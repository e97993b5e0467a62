"""What histories leave in photographs, and what they must not."""

from functools import partial

import numpy as np
import pytest

from vdvae_codec import transforms
from vdvae_codec.training.augment import JPEG, LUMA, PHOTOCD, VIDEO, doubled, halved, mosaiced, process, recoloured
from vdvae_codec.transforms.ycc import CONVERSIONS


@pytest.mark.parametrize("scales", [JPEG, VIDEO, PHOTOCD])
def test_colours_in_whole_steps(photo: np.ndarray, scales: tuple[float, float, float]) -> None:
    image = photo.astype(np.float32)
    out = recoloured(image, scales, False, False, False)
    light = out @ LUMA
    for values, step in ((light, scales[0]), (out[..., 0] - light, scales[1]), (out[..., 2] - light, scales[2])):
        assert np.abs(values / step - (values / step).round()).max() < 1e-3
    assert np.abs(light - image @ LUMA).max() <= scales[0] / 2 + 1e-3


@pytest.mark.parametrize("cosited", [False, True])
def test_colours_at_half_the_resolution(photo: np.ndarray, cosited: bool) -> None:
    keep = partial(recoloured, photo.astype(np.float32), JPEG, True, True, cosited, whole=False)
    for out, smooth in ((keep(), True), (keep(smooth=False), False)):
        colour = (out[..., 0] - out @ LUMA) / JPEG[1]
        if not smooth:
            assert np.abs(colour[0::2] - colour[1::2]).max() < 1e-3
            assert np.abs(colour[:, 0::2] - colour[:, 1::2]).max() < 1e-3
        elif cosited:  # even pixels are as stored, odd ones between them
            assert np.abs(colour[0::2, 0::2] - colour[0::2, 0::2].round()).max() < 1e-3
            assert np.abs(2 * colour[1:-1:2] - colour[0:-2:2] - colour[2::2]).max() < 1e-3
        assert np.abs(out @ LUMA - (photo @ LUMA).round()).max() < 1e-3


@pytest.mark.parametrize("cosited", [False, True])
def test_slopes_survive_half_the_resolution(cosited: bool) -> None:
    slope = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], (40, 6, 2))
    assert np.abs((doubled(halved(slope, cosited), cosited) - slope)[2:-2]).max() < 1e-4


def test_a_mosaic_keeps_the_colour_that_its_filter_passes(photo: np.ndarray) -> None:
    image = photo.astype(np.float32)
    out = mosaiced(image)
    for y, x, channel in ((0, 0, 0), (1, 1, 2), (0, 1, 1), (1, 0, 1)):
        assert np.abs((out - image)[y::2, x::2, channel][1:-1, 1:-1]).max() < 1e-3
    assert np.allclose(mosaiced(np.full_like(image, 50)), 50)


def test_histories_leave_no_edge() -> None:
    for seed in range(100):
        flat = process(np.full((300, 300, 3), 77, np.uint8), 64, np.random.default_rng(seed)).astype(float)
        assert abs(flat[:2].mean() - flat[30:34].mean()) < 4


def test_histories_are_random_but_given_by_the_generator(photo: np.ndarray) -> None:
    made = [[process(photo, 48, np.random.default_rng(seed)) for seed in range(40)] for _ in range(2)]
    for first, second in zip(*made, strict=True):
        assert first.shape == (48, 48, 3) and first.dtype == np.uint8 and np.array_equal(first, second)
    cuts = {photo[y : y + 48, x : x + 48].tobytes() for y in range(73) for x in range(113)}
    untouched = sum(crop.tobytes() in cuts for crop in made[0])
    assert 8 <= untouched <= 26  # of 40, about four in ten


def test_ycc_is_what_the_codec_sees(photo: np.ndarray) -> None:
    """A history as ycc alone is what ``transforms.forward`` makes of its JPEG or PhotoCD."""
    dull = (photo.astype(np.float32) - 128) * 0.6 + 128  # nothing is clipped
    for scales, conversion in ((JPEG, CONVERSIONS[0]), (PHOTOCD, CONVERSIONS[2])):
        seen = recoloured(dull, scales, True, True, True, as_ycc=True)
        red, light, blue = np.moveaxis(seen, 2, 0).astype(np.int64)
        blues, reds = conversion.middle
        rgb = conversion.to_rgb(np.stack([light, blue - light + blues, red - light + reds], -1)).astype(np.uint8)
        coded = transforms.forward(rgb)
        assert transforms.names(coded.side_info)[0] == conversion.name
        assert (coded.pixels == seen).all(-1).mean() > 0.999
