"""Samples, reconstructions that keep a part of an image, and the pictures that show them."""

import numpy as np
import pytest
import torch
from tiny import TINY, untrained
from torch import Tensor

from vdvae_codec.codec.store import Released
from vdvae_codec.model.distributions.gaussian import Gaussian
from vdvae_codec.model.sampling import GAP, Reconstruct, Sample, reconstructions, samples, sheet, square
from vdvae_codec.model.vdvae import VDVAE


@pytest.fixture(scope="module")
def x(photo: np.ndarray) -> Tensor:
    """Two crops of the photograph, (2, 3, 40, 48) float32 G, R, B."""
    crops = np.stack([photo[:40, :48], photo[60:100, 80:128]])[..., [1, 0, 2]]
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def loud() -> VDVAE:
    """A model whose latents say much of the image, and whose pixels follow them."""
    model = untrained(TINY)
    for layer in model.latent_layers:
        layer.posterior.c4.weight.mul_(50)
        layer.z_proj.weight.mul_(10)
    return model


def test_samples(tiny_model: Released, tiny_float: VDVAE) -> None:
    for model in (tiny_model.model, tiny_float):
        assert torch.equal(samples(model, 2, 16, 16, 0.0), samples(model, 2, 16, 16, 0.0))
        cold = samples(model, 2, 16, 16, 0.0)
        distances = []
        for temperature in (0.1, 1.0):
            torch.manual_seed(0)
            drawn = samples(model, 2, 16, 16, temperature)
            torch.manual_seed(0)
            assert torch.equal(samples(model, 2, 16, 16, temperature), drawn)
            assert not torch.equal(samples(model, 2, 16, 16, temperature), drawn)
            distances.append(float((drawn - cold).abs().mean()))
        assert 0 < distances[0] < distances[1]
    assert samples(tiny_float, 3, 13, 21, 1.0).shape == (3, 3, 13, 21)


def test_samples_in_several_batches(tiny_float: VDVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae_codec.model.sampling.BATCH_PIXELS", 2 * 8 * 8)
    drawn = samples(tiny_float, 5, 8, 8, 1.0)
    assert drawn.shape == (5, 3, 8, 8) and len(torch.unique(drawn, dim=0)) == 5


def test_inactive_latents_stay_at_the_prior_mean() -> None:
    layer = untrained(TINY).latent_layers[0]
    layer.active[1:3] = False
    p, q = (Gaussian(torch.full((1, 4, 2, 2), mean), torch.zeros(1, 4, 2, 2)) for mean in (5.0, 9.0))
    z = Sample().latent(layer, p, lambda acts: q)
    assert torch.equal(z == 5, layer.active.logical_not()[None, :, None, None].expand(1, 4, 2, 2))
    z = Reconstruct({}, 8, None, 1.0).latent(layer, p, lambda acts: q)
    assert z[0, :, 0, 0].tolist() == [9, 5, 5, 9]


def test_reconstructions_keep_what_they_should(tiny_model: Released, tiny_float: VDVAE, x: Tensor) -> None:
    for model in (tiny_model.model, tiny_float):
        strides = model.config.strides
        assert strides == [8, 4, 2]
        images = list(reconstructions(model, x, True, 1.0))
        for stride, image in zip(strides, images, strict=True):
            kept = torch.zeros(x.shape[2:], dtype=torch.bool)
            for layer in model.pixel_layers:
                if layer.stride >= stride:
                    layer.plane(kept[None, None])[:] = True
            assert torch.equal(image[:, :, kept], x[:, :, kept])
            if stride > 2:  # what was drawn is not the image's
                assert float((image != x)[:, :, ~kept].float().mean()) > 0.8
        assert torch.equal(images[-1], x)


def test_reconstructions_of_latents_alone(loud: VDVAE, x: Tensor) -> None:
    """At temperature 0 they differ from the most likely image, from resolution to resolution, and from image to image.

    Stride 2 has no latents, and so adds nothing.
    """
    nothing = samples(loud, 1, 40, 48, 0.0)
    coarse, middle, fine = reconstructions(loud, x, False, 0.0)
    assert not torch.equal(coarse[0], nothing[0]) and not torch.equal(coarse[0], coarse[1])
    assert not torch.equal(coarse, middle) and torch.equal(middle, fine)


def test_kept_latents_are_posterior_means_and_finer_ones_are_drawn(loud: VDVAE, x: Tensor) -> None:
    zs: list[tuple[Tensor, Tensor]] = []

    class Spy(Reconstruct):
        def latent(self, layer, p, posterior):  # type: ignore[no-untyped-def]
            z = super().latent(layer, p, posterior)
            zs.append((z - posterior(self.acts).mean, z - p.mean))
            return z

    loud.walk(torch.zeros_like(x), Spy(loud.encode(x), 8, x, 1.0))
    (coarse_q, coarse_p), (fine_q, fine_p) = zs
    assert not coarse_q.any() and coarse_p.abs().mean() > 0.05
    assert fine_q.abs().mean() > 0.1 and fine_p.abs().mean() > 0.1


def test_sheet(x: Tensor) -> None:
    plain = sheet([x, x])
    assert plain.shape == (2 * 40 + GAP, 2 * 48 + GAP, 3) and plain.dtype == np.uint8
    assert np.array_equal(plain[:40, :48], x[0, [1, 0, 2]].permute(1, 2, 0).numpy())
    assert (plain[40 : 40 + GAP] == 255).all()
    labelled = sheet([x], ["a row"], ["first", "a column with a long name"])
    assert labelled.shape[0] > 40 and labelled.shape[1] > 2 * 48 + GAP
    top, left = labelled.shape[0] - 40, sheet([x], ["a row"]).shape[1] - (2 * 48 + GAP)
    assert np.array_equal(labelled[top:, left : left + 48], plain[:40, :48])
    assert (labelled[:top, left:] < 128).any() and (labelled[top:, :left] < 128).any()
    assert square(torch.zeros(7, 3, 8, 8)).shape == (3 * 8 + 2 * GAP, 3 * 8 + 2 * GAP, 3)
