"""Kinds of layers: lists of them as the docs show, and new kinds that need no more than their place in the registry."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pytest
import torch
from laws import check_inverse
from tiny import TINY, quantised, random_crops, untrained
from torch import Tensor

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.store import WEIGHTS, load_released, save_released
from vdvae_codec.codec.visitors import exact_elbo, pop_group, push_group
from vdvae_codec.errors import ConfigError
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.model.blocks import Block, Conv
from vdvae_codec.model.config import ModelConfig, model_from_dict, read_config, to_dict, write_tables
from vdvae_codec.model.distributions.logistics import Mixture
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.kinds import KINDS
from vdvae_codec.model.layers.base import Layer, Offset, Place, State, Visitor
from vdvae_codec.model.layers.phase import PhaseConfig, PhaseLayer, nearest_average
from vdvae_codec.model.vdvae import VDVAE, muon_weights

DOCS = Path(__file__).parents[2] / "docs"
LISTS = [
    block for page in sorted(DOCS.rglob("*.md"))
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    if "[model]" in block and "[[layers]]" in block
]


def test_the_docs_show_lists_of_layers() -> None:
    assert len(LISTS) >= 2


@pytest.mark.parametrize("block", LISTS)
def test_lists_of_layers_in_the_docs_can_be_walked(block: str) -> None:
    tables = tomllib.loads(block)
    config = model_from_dict({name: tables[name] for name in ("model", "encoder", "layers") if name in tables})
    torch.manual_seed(0)
    model = VDVAE(config)
    side = config.side or max(8, config.max_stride)
    terms = elbo(model, torch.full((1, 3, side, side), 100.0))
    assert len(terms.kl_nats) == len(model.latent_layers) and len(terms.nll_nats) == len(model.pixel_layers) > 0
    assert all(bool(torch.isfinite(t).all()) for t in terms.kl_nats + terms.nll_nats)


@dataclass(frozen=True)
class RefineConfig:
    """Blocks that neither draw a latent nor hold a pixel."""

    KIND: ClassVar[str] = "toy.refine"

    stride: int
    width: int
    blocks: int = 1

    @property
    def depth(self) -> int:
        return self.blocks

    @property
    def holds(self) -> tuple[Offset, ...]:
        return ()

    @property
    def needs_encoder(self) -> bool:
        return False

    def single(self) -> list[Self]:
        return [self]


class Refine(Layer):
    Config = RefineConfig

    def __init__(self, config: RefineConfig, place: Place):
        super().__init__(config, place)
        self.blocks = torch.nn.Sequential(*[Block(config.width, 8, place.gain) for _ in range(config.blocks)])

    def forward(self, state: State, visit: Visitor) -> State:
        return State(self.blocks(self.enter(state)), self.stride, state.x)


@dataclass(frozen=True)
class SharpConfig(PhaseConfig):
    """Phases whose scales are moved."""

    KIND: ClassVar[str] = "toy.sharp"

    nats: float = -0.5


class Sharp(PhaseLayer):
    Config = SharpConfig

    def __init__(self, config: SharpConfig, place: Place):
        super().__init__(config, place)
        self.nats = config.nats

    def mixture(self, out: Tensor, bases: Tensor) -> Mixture:
        p = super().mixture(out, bases)
        return replace(p, log_sigma=p.log_sigma + self.nats)  # type: ignore[type-var]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """TINY with a refining layer between its layers, and sharp pixels at the end."""
    for kind in (Refine, Sharp):
        monkeypatch.setitem(KINDS, kind.Config.KIND, kind)
    tables = to_dict(TINY)
    last = tables["layers"].pop()
    refine = {"kind": "toy.refine", "stride": 4, "width": 16, "blocks": 2}
    tables["layers"] += [refine, last | {"kind": "toy.sharp", "nats": -0.25}]
    return model_from_dict(tables)


def test_new_kinds_are_trained_sampled_quantised_and_coded(toy: ModelConfig, photo: np.ndarray, tmp_path: Path) -> None:
    write_tables(tmp_path / "config.toml", to_dict(toy))
    assert read_config(tmp_path / "config.toml") == toy
    assert toy.by_stride([1, 2], range(10)) == TINY.by_stride([1, 2], range(10))

    model = untrained(toy)
    x = random_crops(photo, 4, 32, (0,))
    terms = elbo(model, x)
    assert (len(terms.kl_nats), len(terms.nll_nats)) == (2, 10)
    muon = {id(weight) for weight in muon_weights(model)}
    refine = next(layer for layer in model.layers if isinstance(layer, Refine))
    assert {id(m.weight) for m in refine.modules() if isinstance(m, Conv)} <= muon

    exact = quantised(model, [x])
    assert sum(isinstance(m, ExactConv) for m in exact.modules()) == sum(isinstance(m, Conv) for m in model.modules())
    save_released(tmp_path, toy, exact, x[0].to(torch.uint8))
    released = load_released(str(tmp_path), "cpu")
    group = Group(torch.ones_like(x[:, :2], dtype=torch.bool))
    bits = check_inverse(
        lambda stack, x: push_group(released.model, released.tables, group, torch.from_numpy(x), stack, False),
        lambda stack: pop_group(released.model, released.tables, group, stack, False).numpy(), x.numpy(), words=4000,
    )
    counted = exact_elbo(released.model, released.tables, group, x.clone())
    assert bits == pytest.approx(sum(counted.kl_bits) + sum(counted.pixel_bits), rel=0.01)
    assert (tmp_path / WEIGHTS).exists()


def test_kinds_that_are_not_registered_are_refused(toy: ModelConfig) -> None:
    tables = to_dict(toy)
    del KINDS["toy.refine"]
    with pytest.raises(ConfigError, match=r"layers\[4\]: kind must be one of .*got 'toy.refine'"):
        model_from_dict(tables)


def test_the_registry_is_as_it_was() -> None:
    assert list(KINDS) == ["latent", "phase", "causal", "child2021.latent", "child2021.pixels"]


def test_layers_know_all_pixels_of_the_layers_before() -> None:
    model = VDVAE(TINY)
    contexts = [len(layer.context) for layer in model.pixel_layers]
    assert contexts == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    planes = torch.zeros(32, 32)
    for layer in model.pixel_layers:
        layer.plane(planes[None, None])[:] += 1
    assert bool((planes == 1).all())


@torch.no_grad()
def test_a_pixel_layer_sees_what_is_known_and_nothing_else(photo: np.ndarray) -> None:
    """What the layers after it hold changes no parameter of a layer's distribution: else decoding would fail."""
    torch.manual_seed(0)
    model = VDVAE(TINY).eval()
    x = random_crops(photo, 1, 32, (0,))

    class Look:
        def __init__(self) -> None:
            self.seen: list[Mixture] = []

        def latent(self, layer, p, posterior):  # type: ignore[no-untyped-def]
            return p.mean

        def pixels(self, layer: PhaseLayer, p: Mixture, x: Tensor) -> None:
            self.seen.append(p)

    for n, layer in enumerate(model.pixel_layers):
        other = x.clone()
        for later in model.pixel_layers[n:]:
            later.plane(other)[:] = 7
        looks = [Look(), Look()]
        for image, look in zip((x, other), looks):
            model.walk(image, look)
        ours, theirs = (vars(look.seen[n]) for look in looks)
        for name, value in ours.items():
            assert not isinstance(value, Tensor) or torch.equal(value, theirs[name]), (layer.offset, name)
        if n:  # and what is known counts
            model.pixel_layers[0].plane(other)[:] = 50
            look = Look()
            model.walk(other, look)
            assert not torch.equal(look.seen[n].location(0, other), looks[1].seen[n].location(0, other))


def test_predictors_start_with_the_mean_of_the_nearest_pixels() -> None:
    weight = nearest_average(8, (0, 4), [(0, 0), (4, 4)], 3).view(3, 2, 3, 3, 3)
    assert weight.sum((1, 2, 3, 4)).tolist() == pytest.approx([1, 1, 1])
    assert weight[0, 0, 0, 1].tolist() == [0, 0.25, 0.25]  # to the left and the right
    assert weight[0, 1, 0, :, 1].tolist() == [0.25, 0.25, 0]  # above and below
    assert not weight[0, :, 1:].any() and not weight[1, :, [0, 2]].any()
