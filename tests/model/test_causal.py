"""Causal layers: what they see, and that parallel pass, strips and wavefronts are one network."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CAUSAL, quantised, random_crops, untrained
from torch import Tensor

from vdvae_codec.errors import ConfigError
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.encoder import EncoderStage, StyleConfig, StyleEncoder, covering, second_differences
from vdvae_codec.model.layers.base import State
from vdvae_codec.model.layers.causal import CausalConfig, CausalLayer
from vdvae_codec.model.sampling import samples
from vdvae_codec.model.vdvae import VDVAE

NAMES = ("logits", "loc", "log_sigma", "base", "coupling")


def layer_of(model: VDVAE) -> CausalLayer:
    layer = model.layers[-1]
    assert isinstance(layer, CausalLayer)
    return layer


def parameters(layer: CausalLayer, rows: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Of ``CausalLayer.distribution``, over (B, h, w)."""
    p = layer.distribution(rows)
    return [getattr(p, name)[0, ..., 0, :].unflatten(-1, shape) for name in NAMES]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(3, 10, 14), (1, 1, 1), (2, 1, 7), (2, 9, 1), (1, 130, 70), (70, 9, 9)])
@torch.inference_mode()
def test_parallel_pass_strips_and_wavefronts_are_one_network(shape: tuple[int, int, int], exact: bool) -> None:
    torch.manual_seed(1)
    count, height, width = shape
    config = ModelConfig((CausalConfig(16, 12, blocks=3, mixtures=3, reach=2 + exact),), tile=32)
    x = torch.randint(0, 256, (count, 3, height, width)).float()
    model = untrained(config)
    for weight in model.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    layer = layer_of(quantised(model, [x]) if exact else model)
    state = State(torch.randn(count, 16, -(-height // 4), -(-width // 4)), 4, x)
    p = layer.parallel(state)
    reference = [getattr(p, name).movedim(0, -3) for name in NAMES]  # (..., B, h, w)
    close = {"rtol": 0.0, "atol": 0.0 if exact else 1e-3}
    for found, expected in zip(parameters(layer, layer.strips(state), shape), reference):
        torch.testing.assert_close(found, expected, **close)
    blank = State(state.h, 4, torch.zeros_like(x))
    for wave, rows, pixels in layer.waves(blank):
        y = torch.arange(wave.low, wave.high)
        found = parameters(layer, rows, (count, len(y)))
        for own, expected in zip(found, reference):
            torch.testing.assert_close(own, expected[..., y, wave.t - 2 * y], **close)
        pixels.put(wave, x[:, :, y, wave.t - 2 * y].permute(0, 2, 1).flatten(0, 1))
    assert torch.equal(blank.x, x)


@torch.no_grad()
def test_a_pixel_sees_what_comes_before_it_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = layer_of(untrained(ModelConfig((CausalConfig(8, 8, blocks=2, mixtures=2),), tile=32)))
    x = torch.randint(0, 256, (1, 3, 9, 11)).float()
    before = layer.parallel(State(torch.zeros(1, 8, 1, 1), 16, x))
    other = x.clone()
    other[:, :, 4, 5] = 255 - other[:, :, 4, 5]
    after = layer.parallel(State(torch.zeros(1, 8, 1, 1), 16, other))
    changed = (before.loc != after.loc).any(2).any(1)[0] | (before.base != after.base).any(2).any(1)[0]
    y, x_ = torch.meshgrid(torch.arange(9), torch.arange(11), indexing="ij")
    assert bool(changed[4, 6]) and bool(changed[5, 4]) and bool(changed[5, 5])
    assert not bool(changed[x_ + 2 * y <= 5 + 2 * 4].any())


def test_pixels_of_earlier_layers_are_seen_everywhere() -> None:
    """A causal layer at stride 2 above phases: the phases see it, and a second causal layer sees the first."""
    coarse = CausalConfig(8, 8, blocks=1, mixtures=2, stride=2)
    rest = [replace(coarse, offset=offset) for offset in ((1, 1), (0, 1), (1, 0))]
    model = untrained(ModelConfig((coarse, *rest), tile=32))
    x = torch.randint(0, 256, (2, 3, 12, 16)).float()
    assert elbo(model, x).dims == x.numel()
    torch.manual_seed(0)
    assert samples(model, 2, 12, 16, 1.0).std() > 0
    layer = model.layers[2]
    assert isinstance(layer, CausalLayer) and layer.earlier == [(0, 0), (1, 1)]


def test_grids_need_not_be_filled() -> None:
    """Cells of 16 pixels over tiles of 24: as if the image went on periodically."""
    x = torch.arange(2.0 * 3 * 24 * 20).view(2, 3, 24, 20)
    whole = covering(x, 16)
    assert whole.shape == (2, 3, 32, 32)
    assert torch.equal(whole[:, :, :24, :20], x) and torch.equal(whole[:, :, 24:, :20], x[:, :, :8])
    encoder = StyleEncoder(StyleConfig((EncoderStage(16, 12, 8, 1),)))
    assert encoder(x)[16].shape == (2, 12, 2, 2)
    assert CAUSAL.multiple == 2


def test_second_differences() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 4, 5)
    assert torch.equal(second_differences(ramp)[..., 1:-1], torch.zeros(1, 2, 4, 3))
    assert second_differences(ramp**2)[0, 0, 1, 2] == 2 and second_differences(ramp**2)[0, 1, 1, 2] == 0


def test_samples_of_causal_models(causal_float: VDVAE) -> None:
    torch.manual_seed(0)
    drawn = samples(causal_float, 2, 18, 22, 1.0)
    assert drawn.shape == (2, 3, 18, 22) and drawn.min() >= 0 and drawn.max() <= 255
    assert torch.equal(drawn, drawn.round()) and not torch.equal(drawn[0], drawn[1])
    cold = samples(causal_float, 1, 18, 22, 0.0)
    assert torch.equal(cold, samples(causal_float, 1, 18, 22, 0.0))


@pytest.mark.parametrize(
    "changes", [{"width": 0}, {"mixtures": 0}, {"reach": 0}, {"offset": (0, 1)}, {"stride": 2, "offset": (2, 0)}]
)
def test_impossible_layers(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="causal at stride"):
        replace(CausalConfig(8, 8, 1, 2), **changes)  # type: ignore[arg-type]


CODE = """
import sys, hashlib
sys.path.insert(0, sys.argv[1])
import torch
from tiny import CAUSAL, quantised, random_crops, untrained
from vdvae_codec.images.files import read_rgb
from vdvae_codec.codec.group import Group
from vdvae_codec.codec.visitors import pop_group, push_group
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.exact.cdf import make_tables
from vdvae_codec.exact.arithmetic import plain
from pathlib import Path
torch.set_num_threads(int(sys.argv[2]))
with plain():
    x = random_crops(read_rgb(Path(sys.argv[1]) / "data" / "photo.png"), 6, 60, (1,))
    model, tables, stack = untrained(CAUSAL), make_tables(), Stack()
    exact = quantised(model, [x])
    group = Group(torch.ones(6, 2, 60, 60, dtype=torch.bool))
    push_group(exact, tables, group, x, stack, True)
    print(hashlib.sha256(stack.words().tobytes()).hexdigest())
    assert torch.equal(pop_group(exact, tables, group, stack, True), x) and stack.empty
"""


def test_other_instructions_and_threads_give_the_same_words() -> None:
    """With bytes and without them."""
    words = set()
    for isa, threads in (("SSE41", 1), ("DEFAULT", 2), ("AVX2", 2)):
        run = subprocess.run(
            [sys.executable, "-c", CODE, str(Path(__file__).parents[1]), str(threads)],
            capture_output=True, text=True, check=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa},
        )
        words.add(run.stdout)
    assert len(words) == 1


def test_free_nats_cost_nothing(photo: np.ndarray) -> None:
    """A layer whose KL is below what is free is not pushed towards its prior."""
    from vdvae_codec.training.recipe import Recipe
    from vdvae_codec.training.trainer import Trainer

    x = random_crops(photo, 2, 32, (0,)).to(torch.uint8)
    gradients = []
    for free in (0.0, 1e6):
        trainer = Trainer(CAUSAL, Recipe(steps=10, kl_warmup_steps=0, free_nats=free), torch.device("cpu"))
        with torch.no_grad():  # the pixels do not depend on z: only the KL moves the posterior
            trainer.model.latent_layers[0].z_proj.weight.zero_()
        trainer.update([x])
        gradients.append(trainer.model.latent_layers[0].posterior.c4.weight.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert gradients[0].abs().sum() > 0 and gradients[1].abs().sum() == 0
