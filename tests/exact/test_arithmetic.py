"""What the program around us has chosen changes no byte, and is as it was afterwards."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import random_crops

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.store import WEIGHTS, Released, known_answer, load_released
from vdvae_codec.codec.visitors import pop_group, push_group
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.exact.arithmetic import plain, precisions

BACKENDS: Any = torch.backends


@contextmanager
def setting(change: Callable[[], object], back: Callable[[], object]) -> Iterator[None]:
    change()
    try:
        yield
    finally:
        back()


def highest() -> None:
    torch.set_float32_matmul_precision("highest")
    for owner in (BACKENDS.mkldnn.matmul, BACKENDS.cuda.matmul):  # where that leaves traces
        owner.fp32_precision = "none"


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: setting(
        lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)
    ),
    "bfloat16": lambda: setting(
        lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.set_default_dtype(torch.float32)
    ),
    "medium": lambda: setting(lambda: torch.set_float32_matmul_precision("medium"), highest),
    "bf16 convolutions": lambda: setting(
        lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
        lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "none"),
    ),
    "bf16 products": lambda: setting(
        lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
        lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "none"),
    ),
    "bf16 everywhere": lambda: setting(
        lambda: setattr(BACKENDS, "fp32_precision", "bf16"), lambda: setattr(BACKENDS, "fp32_precision", "none")
    ),
    "deterministic": lambda: setting(
        lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)
    ),
    "deterministic, warnings": lambda: setting(
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "flush denormals": lambda: setting(lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)),
    "meta device": lambda: torch.device("meta"),
    "default meta device": lambda: setting(
        lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)
    ),
    "no mkldnn": lambda: BACKENDS.mkldnn.flags(enabled=False, allow_tf32=None),
    "gradients": torch.enable_grad,
    "inference": torch.inference_mode,
}


def state() -> dict[str, object]:
    """Every setting that ``plain`` may touch."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "precisions": [owner.fp32_precision for pair in precisions() for owner in pair],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "denormal": float(torch.full((1,), 1e-39, dtype=torch.float32, device="cpu") * 1) == 0,
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_change_no_byte_and_are_given_back(name: str, tiny_folder: Path, tiny_model: Released) -> None:
    tensors = load_file(tiny_folder / WEIGHTS)
    image, expected = tensors["known.image"], bytes(tensors["known.answer"].numpy())
    before = state()
    with SETTINGS[name]():
        chosen = state()
        with plain():
            answer = known_answer(tiny_model.model, tiny_model.tables, image)
        assert answer == expected
        assert state() == chosen
    assert state() == before


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_seen_before_they_are_undone(name: str) -> None:
    """Else the test above says nothing."""
    before = state()
    with SETTINGS[name]():
        assert state() != before or name == "gradients"  # the usual
    assert state() == before


@pytest.mark.parametrize("name", SETTINGS)
def test_models_are_loaded_under_any_setting(
    name: str, tiny_folder: Path, tmp_path: Path, tiny_model: Released
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in ("config.toml", WEIGHTS):
        (folder / file).write_bytes((tiny_folder / file).read_bytes())
    with SETTINGS[name]():
        loaded = load_released(str(folder), "cpu")
    for ours, theirs in zip(
        loaded.model.state_dict().values(), tiny_model.model.state_dict().values(), strict=True
    ):
        assert ours.device.type == "cpu" and ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_settings_are_given_back_after_an_error_and_when_nested() -> None:
    before = state()
    with SETTINGS["float64"](), SETTINGS["deterministic"](), SETTINGS["medium"]():
        chosen = state()
        with plain():
            inner = state()
            with plain():
                assert state() == inner
            assert state() == inner
        with pytest.raises(ValueError, match="on purpose"), plain():
            raise ValueError("on purpose")
        assert state() == chosen
    assert state() == before


def test_what_a_backend_passes_on_is_passed_on_afterwards() -> None:
    before = state()
    with SETTINGS["bf16 everywhere"]():
        assert BACKENDS.mkldnn.conv.fp32_precision == "bf16"
        with plain():
            assert BACKENDS.mkldnn.conv.fp32_precision == "ieee"
        assert BACKENDS.mkldnn.conv.fp32_precision == "bf16"
    assert state() == before


def test_threads_that_overlap_do_not_undo_each_other() -> None:
    """The first one leaves while the second one is within."""
    before, entered, left = state(), threading.Event(), threading.Event()
    seen: list[object] = []

    def second() -> None:
        with plain():
            entered.set()
            assert left.wait(10)
            seen.extend((torch.get_default_dtype(), BACKENDS.mkldnn.conv.fp32_precision))

    with SETTINGS["float64"](), SETTINGS["bf16 convolutions"]():
        chosen, thread = state(), threading.Thread(target=second)
        with plain():
            thread.start()
            assert entered.wait(10)
        left.set()
        thread.join()
        assert seen == [torch.float32, "ieee"]
        assert state() == chosen
    assert state() == before


def test_a_group_pushed_in_one_setting_is_popped_in_another(tiny_model: Released, photo: Any) -> None:
    x = random_crops(photo, 3, 32, (5,))
    group = Group(torch.ones_like(x[:, :2], dtype=torch.bool))
    stack = Stack()
    with plain():
        push_group(tiny_model.model, tiny_model.tables, group, x.clone(), stack, direct=True)
    names = [name for name in SETTINGS if "device" not in name]
    for name in names:
        again = Stack(stack.words())
        with SETTINGS[name](), plain():
            assert torch.equal(pop_group(tiny_model.model, tiny_model.tables, group, again, direct=True), x)
        assert again.empty
