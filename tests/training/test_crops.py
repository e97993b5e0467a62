import numpy as np
import pytest
import torch
from tiny import Arrays
from torch import Tensor

from vdvae_codec.errors import TrainingError
from vdvae_codec.training.data import Crops, ahead, split_by_image


@pytest.mark.parametrize("count, share, held", [(2, 0.05, 1), (3, 0.05, 1), (40, 0.05, 2), (10, 0.5, 5)])
def test_split_by_image(count: int, share: float, held: int) -> None:
    images = {f"{n}.png": np.full((1, 1, 3), n, np.uint8) for n in range(count)}
    training, validation = split_by_image(Arrays(images), share, 0)
    assert (len(training.names), len(validation.names)) == (count - held, held)
    assert sorted([*training.names, *validation.names]) == sorted(images)
    assert all(int(s[n].max()) == int(s.names[n][:-4]) for s in (training, validation) for n in range(len(s.names)))
    backwards = dict(reversed(images.items()))
    assert set(split_by_image(Arrays(backwards), share, 0)[1].names) == set(validation.names)
    assert len({tuple(split_by_image(Arrays(images), share, seed)[1].names) for seed in range(20)}) > 1
    with pytest.raises(TrainingError, match="at least two"):
        split_by_image(Arrays({"a": images["0.png"]}), share, 0)


def test_crops(photo: np.ndarray) -> None:
    grb = photo[..., [1, 0, 2]]
    windows = {grb[y : y + 64, x : x + 64].tobytes() for y in range(57) for x in range(97)}
    crops = Crops(Arrays({"": photo}), 64, "none")
    batch = crops.batch((1, 2), 0, 20)
    assert batch.shape == (20, 3, 64, 64) and batch.dtype == torch.uint8
    seen = [crop.permute(1, 2, 0).numpy().tobytes() for crop in batch]
    assert set(seen) <= windows and len(set(seen)) > 15
    assert torch.equal(batch[5:12], crops.batch((1, 2), 5, 7))  # whatever part of a batch a process makes
    assert not torch.equal(batch, crops.batch((1, 3), 0, 20))
    with pytest.raises(TrainingError, match="at least 121x121"):
        Crops(Arrays({"": photo}), 121, "none")


@pytest.mark.parametrize("augment, ways", [("turn", 8), ("mirror", 2), ("none", 1)])
def test_crops_are_turned_and_mirrored(photo: np.ndarray, augment: str, ways: int) -> None:
    square = photo[:64, :64]
    crops = Crops(Arrays({"": square}), 64, augment).batch((0,), 0, 100)
    seen = {crop.permute(1, 2, 0).numpy().tobytes() for crop in crops}
    assert len(seen) == ways and square[..., [1, 0, 2]].tobytes() in seen
    if augment == "mirror":
        assert square[:, ::-1, [1, 0, 2]].tobytes() in seen


def test_photographs_get_random_histories(photo: np.ndarray) -> None:
    crops = Crops(Arrays({"": photo}), 64, "photo")
    batch = crops.batch((0,), 0, 400)
    assert torch.equal(batch[50:60], crops.batch((0,), 50, 10))
    windows = np.lib.stride_tricks.sliding_window_view(photo[..., 0], (64, 64)).reshape(-1, 64 * 64)
    reds = {red.tobytes() for red in windows}
    seen = batch[:, 1].numpy()
    turned = [[np.rot90(red, k)[:, ::way].tobytes() for k in range(4) for way in (1, -1)] for red in seen]
    assert 0.3 < np.mean([any(t in reds for t in ways) for ways in turned]) < 0.6  # the others were processed
    grey = (batch[:, :1] == batch).flatten(1).all(1)
    assert 0 < int(grey.sum()) < 30


def test_crops_are_drawn_by_number_of_places() -> None:
    small, large = np.zeros((10, 10, 3), np.uint8), np.full((30, 28, 3), 255, np.uint8)
    crops = Crops(Arrays({"small": small, "large": large}), 2, "turn").batch((0,), 0, 2000)
    assert float(crops.float().mean()) / 255 == pytest.approx(29 * 27 / (29 * 27 + 81), abs=0.03)


def test_batches_made_ahead_come_in_order_and_stop() -> None:
    made = []

    def batch(step: int) -> Tensor:
        made.append(step)
        return torch.tensor(step)

    assert [int(b) for b in ahead(batch, range(3, 20))] == list(range(3, 20))
    made.clear()
    for b in ahead(batch, range(1000)):
        if int(b) == 5:
            break
    assert len(made) < 20
