"""VDVAE as published: presets, OpenAI's state dicts, and an independent computation of the negative ELBO."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import TABLES, check_inverse
from tiny import quantised, random_crops
from torch import Tensor

from vdvae_codec.codec.group import Group, codes_first_pixels_first
from vdvae_codec.codec.store import find_config
from vdvae_codec.codec.visitors import exact_elbo, pop_group, push_group
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.errors import ConfigError, ModelError
from vdvae_codec.model.child2021 import (
    PublishedEncoderConfig,
    PublishedLatentConfig,
    PublishedPixelConfig,
    published_state,
)
from vdvae_codec.model.config import ModelConfig, read_config
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.encoder import EncoderStage
from vdvae_codec.model.sampling import samples
from vdvae_codec.model.vdvae import VDVAE

# Layers as their hps.py writes them, and the number of parameters in millions that the paper's table 3 gives.
PUBLISHED = {
    "cifar10": (
        "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3", "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21", {}, 384, 10, 39,
    ),
    "imagenet32": (
        "32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6", "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40", {}, 512, 10, 119,
    ),
    "imagenet64": (
        "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
        "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12", {}, 512, 10, 125,
    ),
    "ffhq256": (
        "256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
        "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128", {}, 512, 10, 115,
    ),
    "ffhq1024": (
        "1024x1,1024d2,512x3,512d2,256x5,256d2,128x7,128d2,64x10,64d2,32x14,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
        "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x20,64m32,64x14,128m64,128x7,256m128,256x2,512m256,1024m512",
        {1024: 16, 512: 32, 256: 64}, 512, 2, 109,
    ),
}  # fmt: skip
TINY = ("8x2,8d2,4x1,4d4,1x2", "1x1,4m1,4x1,8m4,8x1", {8: 16, 4: 24}, 32, 3, 0)


def parsed(layers: str) -> list[tuple[int, int | None]]:
    """(resolution, second number) of every layer."""
    out: list[tuple[int, int | None]] = []
    for part in layers.split(","):
        resolution, kind, number = re.fullmatch(r"(\d+)([xmd])(\d+)", part).groups()  # type: ignore[union-attr]
        out += [(int(resolution), None)] * int(number) if kind == "x" else [(int(resolution), int(number))]
    return out


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Key names and shapes of their state dict."""
    enc, dec, widths, width, mixtures, _ = PUBLISHED.get(name, TINY)
    side = parsed(enc)[0][0]
    found: dict[str, tuple[int, ...]] = {}

    def conv(key: str, cin: int, cout: int, kernel: int) -> None:
        found[f"{key}.weight"], found[f"{key}.bias"] = (cout, cin, kernel, kernel), (cout,)

    def block(key: str, cin: int, middle: int, cout: int, resolution: int) -> None:
        k = 3 if resolution > 2 else 1
        conv(f"{key}.c1", cin, middle, 1)
        conv(f"{key}.c2", middle, middle, k)
        conv(f"{key}.c3", middle, middle, k)
        conv(f"{key}.c4", middle, cout, 1)

    finest = widths.get(side, width)
    conv("encoder.in_conv", 3, finest, 3)
    for n, (r, _) in enumerate(parsed(enc)):
        w = widths.get(r, width)
        block(f"encoder.enc_blocks.{n}", w, w // 4, w, r)
    for n, (r, _) in enumerate(parsed(dec)):
        w, key, z = widths.get(r, width), f"decoder.dec_blocks.{n}", 16
        block(f"{key}.enc", 2 * w, w // 4, 2 * z, r)
        block(f"{key}.prior", w, w // 4, 2 * z + w, r)
        conv(f"{key}.z_proj", z, w, 1)
        block(f"{key}.resnet", w, w // 4, w, r)
    for n, r in enumerate(r for r in sorted({r for r, _ in parsed(dec)}) if r <= 64):
        found[f"decoder.bias_xs.{n}"] = (1, widths.get(r, width), r, r)
    conv("decoder.out_net.out_conv", finest, 10 * mixtures, 1)
    found["decoder.gain"] = found["decoder.bias"] = (1, finest, 1, 1)
    return found


def random_state(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {}
    for key, shape in shapes(name).items():
        size = 0.3 if len(shape) == 1 or key.startswith("decoder.b") else (shape[1] * shape[2] * shape[3]) ** -0.5
        state[key] = torch.randn(shape, generator=generator) * size
    for key in state:
        if key.endswith(("prior.c4.weight", "resnet.c4.weight", "enc.c4.weight", "z_proj.weight", "out_conv.weight")):
            state[key] *= 0.3
    return state


def straight_line(name: str, state: dict[str, Tensor], rgb: Tensor, config: ModelConfig) -> list[Tensor]:
    """Nats per image of every KL and, last, of the image (B, 3, H, W) uint8 R, G, B: with no module of ours.

    The noise is drawn as (B, zdim, h, w) float64 from torch's generator, in the order of the layers.
    """
    assert isinstance(config.encoder, PublishedEncoderConfig) and isinstance(config.layers[-1], PublishedPixelConfig)
    enc, dec, widths, width, mixtures, _ = PUBLISHED.get(name, TINY)
    s = {k: v.double() for k, v in state.items()}
    side = rgb.shape[2]

    def conv(key: str, x: Tensor) -> Tensor:
        return F.conv2d(x, s[f"{key}.weight"], s[f"{key}.bias"], padding=s[f"{key}.weight"].shape[2] // 2)

    def block(key: str, x: Tensor) -> Tensor:
        for part in ("c1", "c2", "c3", "c4"):
            x = conv(f"{key}.{part}", 0.5 * x * (1 + torch.erf(x / 2**0.5)))
        return x

    h = conv("encoder.in_conv", (rgb.double() - config.encoder.mean) / config.encoder.std)
    acts = {side: h}
    for n, (_, down) in enumerate(parsed(enc)):
        h = h + block(f"encoder.enc_blocks.{n}", h)
        if down:
            h = F.avg_pool2d(h, down)
        padded = torch.zeros(len(h), widths.get(h.shape[2], width), *h.shape[2:], dtype=h.dtype)
        padded[:, : h.shape[1]] = h
        acts[h.shape[2]] = h = padded
    xs = {s[k].shape[2]: s[k].repeat(len(rgb), 1, 1, 1) for k in s if k.startswith("decoder.bias_xs")}
    out = []
    for n, (r, mixin) in enumerate(parsed(dec)):
        key = f"decoder.dec_blocks.{n}"
        x = xs.get(r, torch.zeros_like(acts[r]))
        if mixin:
            x = x + xs[mixin].repeat_interleave(r // mixin, 2).repeat_interleave(r // mixin, 3)[:, : x.shape[1]]
        q_mean, q_log = block(f"{key}.enc", torch.cat([x, acts[r]], 1)).chunk(2, 1)
        prior = block(f"{key}.prior", x)
        p_mean, p_log, more = prior[:, :16], prior[:, 16:32], prior[:, 32:]
        z = q_mean + q_log.exp() * torch.randn_like(q_mean)
        kl = p_log - q_log - 0.5 + 0.5 * (q_log.exp() ** 2 + (q_mean - p_mean) ** 2) / p_log.exp() ** 2
        out.append(kl.sum((1, 2, 3)))
        x = x + more + conv(f"{key}.z_proj", z)
        xs[r] = x + block(f"{key}.resnet", x)
    head = conv("decoder.out_net.out_conv", xs[side] * s["decoder.gain"] + s["decoder.bias"])
    step = 2 ** (8 - config.layers[-1].bits)
    image = ((rgb // step) * step).double()
    x = (image - 127.5) / 127.5
    total = torch.log_softmax(head[:, :mixtures], 1)
    for c in range(3):
        part = head[:, mixtures + 3 * mixtures * c : mixtures + 3 * mixtures * (c + 1)]
        centre, log_scale, _ = part.chunk(3, 1)
        for earlier, colour in {1: [(0, 0)], 2: [(0, 1), (1, 2)]}.get(c, []):
            coefficient = head[:, mixtures + 3 * mixtures * colour :][:, 2 * mixtures : 3 * mixtures].tanh()
            centre = centre + coefficient * x[:, earlier, None]
        scale = log_scale.clamp(min=-7).exp()
        upper = torch.sigmoid((x[:, c, None] + step / 255 - centre) / scale)
        lower = torch.sigmoid((x[:, c, None] - step / 255 - centre) / scale)
        upper = torch.where(image[:, c, None] == 256 - step, 1.0, upper)
        lower = torch.where(image[:, c, None] == 0, 0.0, lower)
        total = total + torch.log((upper - lower).clamp(min=1e-12))
    return [*out, -torch.logsumexp(total, 1).sum((1, 2))]


def stages(widths: dict[int, tuple[int, int]]) -> tuple[EncoderStage, ...]:
    """Of {stride: (width, blocks)}."""
    return tuple(EncoderStage(stride, width, width // 4, blocks) for stride, (width, blocks) in widths.items())


PRESET = ModelConfig(
    layers=(
        PublishedLatentConfig(8, 32, 8, 16, kernel=1),
        PublishedLatentConfig(2, 24, 6, 16, repeat=2, start=4),
        PublishedLatentConfig(1, 16, 4, 16, repeat=2, start=8),
        PublishedPixelConfig(16, mixtures=3),
    ),
    encoder=PublishedEncoderConfig(stages({8: (32, 2), 2: (24, 2), 1: (16, 3)}), mean=120.0, std=60.0),
    tile=8,
    side=8,
)
"""The architecture of TINY."""


def of_preset(name: str) -> ModelConfig:
    return PRESET if name == "tiny" else read_config(find_config(name))


def imported(name: str, folder: Path) -> VDVAE:
    """A float model with a random state dict of theirs."""
    torch.save({f"module.{key}": value for key, value in random_state(name).items()}, folder / "model.th")
    model = VDVAE(of_preset(name)).requires_grad_(False).eval()
    model.load_state_dict(published_state(folder / "model.th", model))
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_layers(name: str) -> None:
    config = read_config(find_config(name))
    with torch.device("meta"):
        model = VDVAE(config)
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6) == PUBLISHED[name][5]
    assert count == sum(int(np.prod(shape)) for shape in shapes(name).values())
    assert [layer.stride for layer in model.latent_layers] == [
        config.side // r for r, _ in parsed(PUBLISHED[name][1])
    ]
    assert len(model.pixel_layers) == 1 and config.side == parsed(PUBLISHED[name][0])[0][0]


@pytest.mark.parametrize("name", ["tiny", "cifar10"])
def test_imported_models_give_the_published_elbo(name: str, tmp_path: Path, photo: np.ndarray) -> None:
    model = imported(name, tmp_path)
    x = random_crops(photo, 1 if name == "cifar10" else 4, model.config.side, (0,)).double()
    torch.manual_seed(5)
    terms = elbo(model.double(), x)
    ours = [t.sum(1) for t in terms.kl_nats] + terms.nll_nats
    torch.manual_seed(5)
    theirs = straight_line(name, random_state(name), x[:, [1, 0, 2]].to(torch.uint8), model.config)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 5])
def test_fewer_bits_are_scored_as_published(bits: int, tmp_path: Path, photo: np.ndarray) -> None:
    coarse = replace(PRESET, layers=(*PRESET.layers[:-1], PublishedPixelConfig(16, mixtures=3, bits=bits)))
    model = VDVAE(coarse).requires_grad_(False).eval()
    model.load_state_dict(imported("tiny", tmp_path).state_dict())
    x = random_crops(photo, 4, 8, (0,)).double()
    torch.manual_seed(5)
    ours = elbo(model.double(), x).nll_nats[0]
    torch.manual_seed(5)
    theirs = straight_line("tiny", random_state("tiny"), x[:, [1, 0, 2]].to(torch.uint8), coarse)[-1]
    assert torch.allclose(ours, theirs, rtol=1e-5)
    with pytest.raises(ConfigError, match="bits: expected 1 to 8, got 9"):
        PublishedPixelConfig(16, mixtures=3, bits=9)


def test_what_is_no_state_of_the_preset_is_refused(tmp_path: Path) -> None:
    state, path, model = random_state("tiny"), tmp_path / "model.th", VDVAE(PRESET)

    def refused(values: object, message: str) -> None:
        torch.save(values, path)
        with pytest.raises(ModelError, match=re.escape(message)) as error:
            published_state(path, model)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    missing = dict(state)
    del missing["decoder.gain"]
    refused(missing, "1 missing keys: decoder.gain")
    refused(state | {"decoder.more": torch.zeros(1)}, "1 unknown keys: decoder.more")
    refused(state | {"decoder.gain": torch.zeros(1, 3, 1, 1)}, "decoder.gain is (1, 3, 1, 1), expected (1, 16, 1, 1)")
    refused([1, 2], "something else than a state dict")
    refused({"a": Path("x")}, "cannot be read as a state dict")  # a class: nothing of it is executed
    path.write_bytes(b"no zip file")
    with pytest.raises(ModelError, match="cannot be read"):
        published_state(path, model)
    torch.save(state, path)
    with pytest.raises(ModelError, match="as published"):
        published_state(path, VDVAE(read_config(find_config("cifar10-causal"))))


def test_an_imported_model_codes(tmp_path: Path, photo: np.ndarray) -> None:
    model = imported("tiny", tmp_path)
    exact = quantised(model, [random_crops(photo, 16, 8, (1,))])
    assert not codes_first_pixels_first(exact)
    x = random_crops(photo, 3, 8, (2,))
    for coded_mask in (torch.ones(3, 2, 8, 8, dtype=torch.bool), torch.arange(64).view(8, 8).expand(3, 2, 8, 8) < 41):
        group = Group(coded_mask)
        inside = coded_mask[:, :1].expand_as(x)
        image = torch.where(inside, x, 128.0)
        for direct, words in ((True, 0), (False, 3000)):
            bits = check_inverse(
                lambda stack, x: push_group(exact, TABLES, group, torch.from_numpy(x), stack, direct),  # noqa: B023
                lambda stack: pop_group(exact, TABLES, group, stack, direct).numpy(),  # noqa: B023
                image.numpy(), words,
            )
        terms = exact_elbo(exact, TABLES, group, image.clone())
        assert bits == pytest.approx(sum(terms.kl_bits) + sum(terms.pixel_bits), rel=0.05)
    grey = image[:, :1].expand(-1, 3, -1, -1).clone()
    group, stack = Group(torch.ones(3, 1, 8, 8, dtype=torch.bool)), Stack()
    assert push_group(exact, TABLES, group, grey, stack, True) is not None
    assert torch.equal(pop_group(exact, TABLES, group, stack, True), grey) and stack.empty


def test_a_published_model_has_one_size() -> None:
    model = VDVAE(PRESET)
    assert samples(model, 2, 8, 8, 1.0).shape == (2, 3, 8, 8)
    with pytest.raises(ModelError, match="for images of 8x8, not of 16x16"):
        samples(model, 1, 16, 16, 1.0)
    with pytest.raises(ConfigError, match="8x8 has tiles of that size"):
        replace(PRESET, tile=16)
