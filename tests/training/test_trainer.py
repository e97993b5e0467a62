import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, Arrays
from torch import Tensor
from training_worker import CPU, RECIPE, same

from vdvae_codec.model.blocks import Conv
from vdvae_codec.model.config import read_config
from vdvae_codec.model.layers.latent import LatentConfig
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.data import Crops
from vdvae_codec.training.optimizers import Muon, optimizers, orthogonal
from vdvae_codec.training.recipe import Recipe
from vdvae_codec.training.trainer import Trainer, kl_weight, learning_rate


def batch(photo: np.ndarray, step: int) -> list[Tensor]:
    return [Crops(Arrays({"": photo}), 32, "turn").batch((0, step), 0, 2)]


def state(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
    tensors |= {f"ema.{k}": v.clone() for k, v in trainer.ema.model.state_dict().items()}
    for name, optimizer in trainer.optimizers.items():
        for n, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{n}.{k}": v.clone() for k, v in values.items()}
    return tensors


def test_a_resumed_run_equals_an_uninterrupted_one(photo: np.ndarray, tmp_path: Path) -> None:
    whole = Trainer(TINY, RECIPE, CPU)
    seen = [whole.update(batch(photo, step)) for step in range(4)]
    first = Trainer(TINY, RECIPE, CPU)
    again = [first.update(batch(photo, step)) for step in range(2)]
    first.save(tmp_path, 0.05, 1, {})
    assert len(list((tmp_path / "checkpoint-00000002").glob("part-*"))) > 2
    second = Trainer(TINY, dataclasses.replace(RECIPE, seed=99), CPU)
    assert not same(state(first), state(second))
    second.recipe = RECIPE
    second.load(tmp_path / "checkpoint-00000002")
    assert same(state(first), state(second))
    torch.rand(7)  # the state of the generator does not matter
    again += [second.update(batch(photo, step)) for step in range(2, 4)]
    assert again == seen
    assert same(state(whole), state(second))
    assert (whole.step, whole.running_norm) == (second.step, second.running_norm)


def test_steps_that_are_not_finite_are_skipped(photo: np.ndarray) -> None:
    trainer = Trainer(TINY, RECIPE, CPU)
    trainer.update(batch(photo, 0))
    before, norm = state(trainer), trainer.running_norm
    poisoned = batch(photo, 1)[0].float()
    poisoned[0, 0, 5, 5] = torch.inf
    step = trainer.update([poisoned])
    assert not math.isfinite(step.grad_norm) and not step.taken
    assert same(state(trainer), before)
    assert (trainer.step, trainer.skipped, trainer.running_norm) == (2, 1, norm)
    trainer.update(batch(photo, 2))
    assert trainer.skipped == 1 and not same(state(trainer), before)


def test_steps_with_an_outlying_gradient_are_skipped_but_not_for_ever(photo: np.ndarray) -> None:
    trainer = Trainer(TINY, RECIPE, CPU)
    norm = trainer.update(batch(photo, 0)).grad_norm
    before = state(trainer)
    trainer.step, trainer.running_norm = 30, norm / 100
    norms = []
    while trainer.skipped == len(norms):
        trainer.update(batch(photo, 0))
        norms.append(trainer.running_norm)
        assert len(norms) < 200
    assert len(norms) > 1 and norms == sorted(norms)
    assert not same(state(trainer), before)


def test_recomputing_activations_changes_no_gradient(photo: np.ndarray) -> None:
    kept, again = (Trainer(TINY, dataclasses.replace(RECIPE, recompute=r), CPU) for r in (False, True))
    sizes: dict[bool, int] = {}
    for trainer in (kept, again):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({trainer.recipe.recompute: sizes.get(  # noqa: B023
                trainer.recipe.recompute, 0) + t.numel()}) or t, lambda t: t):  # noqa: B023
            trainer.update(batch(photo, 0))
    assert same(state(kept), state(again))


def test_schedules() -> None:
    recipe = Recipe(steps=1000, learning_rate=0.1, warmup_steps=10, cooldown=0.5, kl_warmup_steps=100)
    rates = [learning_rate(recipe, step) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01) and rates[9] == rates[500] == 0.1
    assert rates[750] == pytest.approx(0.05) and rates[1000] == pytest.approx(0)
    assert rates[500:] == sorted(rates[500:], reverse=True)
    short = dataclasses.replace(recipe, steps=50)
    assert [learning_rate(short, step) for step in (2, 5, 25)] == pytest.approx([0.05, 0.1, 0.1])
    weights = [kl_weight(recipe, step) for step in range(1001)]
    assert weights[0] < 0.05 and weights == sorted(weights) and weights[100] == weights[-1] == 1
    assert kl_weight(dataclasses.replace(recipe, kl_warmup_steps=0), 0) == 1


# --- optimizers ---


def share(model: VDVAE, recipe: Recipe) -> tuple[set[str], set[str]]:
    """Names of the parameters of AdamW and of Muon."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        kind: [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        for kind, optimizer in optimizers(model, recipe).items()
    }
    adamw, muon = groups["optimizer"], groups.get("muon", [])
    assert sorted(adamw + muon) == sorted(names.values())  # each once
    return set(adamw), set(muon)


def test_muon_trains_weights_between_features_of_latent_layers_and_encoder_too() -> None:
    model = VDVAE(TINY)
    adamw, muon = share(model, RECIPE)
    assert {int(name.split(".")[1]) for name in muon if name.startswith("layers.")} == set(range(len(model.layers)))
    assert {"encoder.stem.weight", "encoder.stages.0.0.c4.weight", "layers.0.prior.c3.weight",
            "layers.0.posterior.c1.weight", "layers.0.z_proj.weight", "layers.0.resnet.c4.weight"} <= muon
    gives_parameters = ("head", "predictor", "prior.c4", "posterior.c4")
    convolutions = [name for name, module in model.named_modules() if isinstance(module, Conv)]
    assert muon == {f"{name}.weight" for name in convolutions if not name.endswith(gives_parameters)}
    assert share(model, dataclasses.replace(RECIPE, muon=0.0)) == (adamw | muon, set())


def test_muon_leaves_out_what_gives_parameters_in_published_models() -> None:
    config = read_config(Path(__file__).parents[2] / "models" / "cifar10" / "config.toml")
    few = tuple(dataclasses.replace(c, repeat=1) if isinstance(c, LatentConfig) else c for c in config.layers)
    model = VDVAE(dataclasses.replace(config, layers=few))
    adamw, muon = share(model, RECIPE)
    last = len(model.layers) - 1
    assert {f"layers.{last}.head.weight", "layers.0.prior.c4.weight", "layers.0.posterior.c4.weight"} <= adamw
    assert {"encoder.in_conv.weight", "layers.0.prior.c1.weight", "layers.0.z_proj.weight"} <= muon
    assert {name.rsplit(".", 1)[1] for name in muon} == {"weight"}


def test_muon_steps_are_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 8, 20)))
    assert bool(((values > 0.5) & (values < 1.3)).all())
    weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    optimizer = Muon([weight], lr=0.5)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    moved = float(weight.detach().square().mean().sqrt())
    assert moved == pytest.approx(0.5 * 0.2, rel=0.2)  # as large as AdamW's steps usually are
