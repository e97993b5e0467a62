import numpy as np
import pytest
from image_samples import natural

from vdvae_codec.images.tiling import FILL, cut_tiles, in_image, paste_tile, tile_boxes, tile_grid


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 9), (10000, 3), (3, 10000), (256, 256), (257, 256), (512, 768), (513, 1025), (9, 8)]
)
@pytest.mark.parametrize("largest, multiple", [(256, 16), (64, 64), (100, 16), (8, 1)])
def test_tiles_cover_each_pixel_once(size: tuple[int, int], largest: int, multiple: int) -> None:
    tile = tile_grid(*size, largest, multiple)
    hits = np.zeros(size, np.uint8)
    boxes = tile_boxes(*size, tile)
    for y0, x0, y1, x1 in boxes:
        assert 0 < y1 - y0 <= tile[0] and 0 < x1 - x0 <= tile[1]
        hits[y0:y1, x0:x1] += 1
    assert np.all(hits == 1)
    assert boxes == sorted(boxes)
    for total, side in zip(size, tile, strict=True):
        assert side % multiple == 0 and side < min(total, largest) + multiple
        assert side <= largest or largest % multiple
    assert len(boxes) == -(-size[0] // tile[0]) * -(-size[1] // tile[1])


def test_tile_grid_examples() -> None:
    assert tile_grid(512, 768, 256, 16) == (256, 256)
    assert tile_grid(300, 700, 256, 16) == (160, 240)
    assert tile_grid(1, 10_000, 256, 16) == (16, 256)
    assert tile_boxes(3, 5, (2, 4)) == [(0, 0, 2, 4), (0, 4, 2, 5), (2, 0, 3, 4), (2, 4, 3, 5)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height, width", [(1, 1), (37, 53), (64, 64), (33, 16)])
def test_cut_tiles_are_pasted_back(height: int, width: int, channels: int) -> None:
    images = [natural(height, width, channels), 255 - natural(height, width, channels)]
    tile = tile_grid(height, width, 32, 8)
    places = [(n, box) for n in (1, 0) for box in tile_boxes(height, width, tile)]
    x, mask = cut_tiles(images, places, tile)
    assert x.shape == (len(places), 3, *tile) and x.dtype == np.uint8 and mask.shape == (len(places), *tile)
    assert np.array_equal(mask, in_image([box for _, box in places], tile)) and mask.sum() == 2 * height * width
    assert (x.transpose(0, 2, 3, 1)[~mask] == FILL).all()
    back = [np.zeros_like(image) for image in images]
    for (n, box), part in zip(places, x):
        paste_tile(back[n], box, part)
    assert all(map(np.array_equal, back, images))


def test_tiles_are_green_red_blue() -> None:
    red, grey = np.uint8([[[255, 1, 2]]]), np.uint8([[[7]]])
    assert cut_tiles([red], [(0, (0, 0, 1, 1))], (1, 1))[0].ravel().tolist() == [1, 255, 2]
    assert cut_tiles([grey], [(0, (0, 0, 1, 1))], (1, 1))[0].ravel().tolist() == [7, 7, 7]
