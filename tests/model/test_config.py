import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TINY

from vdvae_codec.codec.store import find_config, shipped
from vdvae_codec.errors import ConfigError
from vdvae_codec.model.config import ModelConfig, model_from_dict, read_config, to_dict, write_tables
from vdvae_codec.model.encoder import EncoderStage, ResidualConfig
from vdvae_codec.model.layers.latent import LatentConfig
from vdvae_codec.model.layers.phase import PhaseConfig

SHIPPED = sorted(path.parent.name for path in shipped().glob("*/config.toml"))


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    write_tables(tmp_path / "tiny.toml", to_dict(TINY))
    return tmp_path / "tiny.toml"


def test_configurations_round_trip(toml: Path) -> None:
    assert read_config(toml) == TINY
    assert model_from_dict(to_dict(TINY)) == TINY
    text = "# a comment\n" + toml.read_text() + "\n[train]\nsteps = 1\n"
    toml.write_text(text)
    assert read_config(toml) == TINY
    write_tables(toml, to_dict(TINY) | {"train": {"steps": 1}})
    assert toml.read_text() == text  # nothing else is said, so the comment stays
    write_tables(toml, to_dict(replace(TINY, tile=64)))
    assert read_config(toml) == replace(TINY, tile=64) and "comment" not in toml.read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_say_no_more_than_needed(name: str) -> None:
    config = read_config(find_config(name))
    assert model_from_dict(to_dict(config)) == config
    single = to_dict(config, single=True)
    assert len(single["layers"]) == len(config.single_layers())
    assert model_from_dict(single).single_layers() == config.single_layers()


def test_defaults_are_left_out() -> None:
    tables = to_dict(TINY)
    assert tables["model"] == {"tile": 32}
    assert tables["layers"][0] == {"kind": "latent", "stride": 8, "width": 16, "bottleneck": 16, "zdim": 4}
    assert to_dict(replace(TINY, channels=1))["model"] == {"tile": 32, "channels": 1}


def test_repeats_and_offsets_are_one_layer_each() -> None:
    assert LatentConfig(2, 8, 4, 2, repeat=3).single() == [LatentConfig(2, 8, 4, 2)] * 3
    phases = TINY.layers[1].single()
    assert [phase.holds for phase in phases] == [((0, 0),), ((4, 4),), ((0, 4),), ((4, 0),)]
    assert [len(layer.single()) for layer in TINY.layers] == [1, 4, 1, 3, 3]
    assert TINY.strides == [8, 4, 2] and TINY.max_stride == 8


def test_sums_by_stride() -> None:
    found = TINY.by_stride([1, 2], range(10))
    assert found == {8: (1, 0 + 1 + 2 + 3), 4: (2, 4 + 5 + 6), 2: (0, 7 + 8 + 9)}
    assert list(found) == [8, 4, 2]
    repeated = replace(TINY, layers=(replace(TINY.layers[0], repeat=3), *TINY.layers[1:]))
    assert repeated.by_stride([1, 10, 100, 1000], [0.5] * 10) == {8: (111, 2), 4: (1000, 1.5), 2: (0, 1.5)}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[model]", "[model]\ndepth = 1\nwidth = 2", r"model: unknown key depth, width"),
        ("[model]", "[modell]", r"unknown table modell"),
        ("[model]\ntile = 32\n", "", r"table model is missing"),
        ("[[layers]]", "[[layer]]", r"unknown table layer"),
        ("zdim = 4", "zdims = 4", r"layers\[0\]: unknown key zdims"),
        ("zdim = 4\n", "", r"layers\[0\]: missing key zdim"),
        ("zdim = 4", "zdim = 0", r"latent at stride 8: sizes must be positive"),
        ("zdim = 4", "zdim = 4.0", r"layers\[0\].zdim: expected int, got 4.0"),
        ("zdim = 4", "zdim = true", r"layers\[0\].zdim: expected int, got True"),
        ('kind = "latent"', 'kind = "latnet"', r"layers\[0\]: kind must be one of latent, phase, .*got 'latnet'"),
        ('kind = "latent"', "", r"layers\[0\]: kind must be one of .*got None"),
        ('kind = "residual"', 'kind = "latent"', r"encoder: kind must be one of residual, .*got 'latent'"),
        ("mixtures = 2", 'mixtures = "2"', r"layers\[1\].mixtures: expected int, got '2'"),
        ("mixtures = 2", "mixtures = 0", r"phase at stride 8: mixtures must be positive"),
        ("mixtures = 2", "mixtures = [", r"tiny.toml: "),
        ("predictor = 3", "predictor = 4", r"phase at stride 8: .*predictor odd"),
        ("joint = true", "joint = 1", r"layers\[1\].joint: expected bool, got 1"),
        ("offsets = [\n    [", "offsets = [\n    3,\n    [", r"layers\[1\].offsets\[0\]: expected a list, got 3"),
        ("tile = 32", "tile = 0", r"tile 0 is no multiple"),
        ("tile = 32", "tile = 33", r"tile 33 is no multiple"),
        ("tile = 32", "tile = 32\nside = 64", r"64x64 has tiles of that size"),
        ("tile = 32", "tile = 32\nchannels = 2", r"channels: expected 1 or 3, got 2"),
        ("tile = 32", "tile = 32\nlayers = []", r"model: expected a table of plain values"),
        ("width = 16", "width = 17", r"encoder has no stage of width 16|stage of width 17"),
    ],
)
def test_bad_configurations_are_refused(toml: Path, old: str, new: str, message: str) -> None:
    text = toml.read_text()
    assert old in text
    toml.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as error:
        read_config(toml)
    assert "\n" not in str(error.value) and str(toml) in str(error.value)


def test_absent_files_and_layers_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_config(tmp_path / "none.toml")
    tables = to_dict(TINY)
    for layers in ({}, "latent", 3):
        with pytest.raises(ConfigError, match="expected a list of tables"):
            model_from_dict(tables | {"layers": layers})
    with pytest.raises(ConfigError, match="at least one layer"):
        model_from_dict(tables | {"layers": []})
    with pytest.raises(ConfigError, match=r"layers\[0\]: expected a table, got 3"):
        model_from_dict(tables | {"layers": [3]})


@pytest.mark.parametrize(
    "offsets, message",
    [
        (((0, 0), (4, 4), (0, 4)), "hold 48 of the 64 pixels|hold 63 of the 64 pixels"),
        (((0, 0), (4, 4), (0, 4), (0, 4)), "two layers hold the same"),
        (((0, 0), (4, 4), (0, 4), (8, 0)), "outside"),
        (((0, 0), (4, 4), (0, 4), (-1, 0)), "outside"),
    ],
)
def test_every_pixel_is_held_once(offsets: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, layers=(TINY.layers[0], dataclasses.replace(TINY.layers[1], offsets=offsets), *TINY.layers[2:]))


@pytest.mark.parametrize("strides", [(7,), (0,), (2, 4), (3, 1), (-2,)])
def test_strides_are_powers_of_two_from_coarse_to_fine(strides: tuple[int, ...]) -> None:
    layers = tuple(LatentConfig(stride, 8, 4, 2) for stride in strides)
    with pytest.raises(ConfigError, match="powers of two, from coarse to fine"):
        ModelConfig((*layers, PhaseConfig(1, 8, 4, ((0, 0),), 1, 1)), ResidualConfig((EncoderStage(1, 8, 4, 1),)))


def test_encoders_go_from_coarse_to_fine() -> None:
    coarse, fine = EncoderStage(8, 16, 16, 1), EncoderStage(4, 16, 12, 1)
    for stages in ((), (fine, coarse), (coarse, coarse)):
        with pytest.raises(ConfigError, match="coarse to fine, one a stride"):
            ResidualConfig(stages)
    with pytest.raises(ConfigError, match="stride 4: the encoder has no stage of width 16"):
        replace(TINY, encoder=ResidualConfig((coarse,)))
    with pytest.raises(ConfigError, match="stride 8: the encoder has no stage"):
        replace(TINY, encoder=None)
