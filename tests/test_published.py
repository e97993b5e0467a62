"""VDVAE as published: presets, OpenAI's state dicts, and an independent computation of the negative ELBO."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from conftest import random_crops
from torch import Tensor

from vdvae_codec.cli.main import main
from vdvae_codec.config import ModelConfig, StageConfig, TrainConfig, read_config, write_config
from vdvae_codec.exact.functions import gelu, tanh_table
from vdvae_codec.export import load_float
from vdvae_codec.images import read_rgb, write_image
from vdvae_codec.model.vdvae import VDVAE, elbo
from vdvae_codec.released import find_config

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
    enc, dec, widths, width, mixtures, _ = PUBLISHED.get(name, TINY)
    s = {k: v.double() for k, v in state.items()}
    side = rgb.shape[2]

    def conv(key: str, x: Tensor) -> Tensor:
        return F.conv2d(x, s[f"{key}.weight"], s[f"{key}.bias"], padding=s[f"{key}.weight"].shape[2] // 2)

    def block(key: str, x: Tensor) -> Tensor:
        for part in ("c1", "c2", "c3", "c4"):
            x = conv(f"{key}.{part}", 0.5 * x * (1 + torch.erf(x / 2**0.5)))
        return x

    h = conv("encoder.in_conv", (rgb.double() - config.mean) / config.std)
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
    step = 2 ** (8 - config.bits)
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_layers(name: str) -> None:
    config, recipe = read_config(find_config(name))
    with torch.device("meta"):
        model = VDVAE(config)
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6) == PUBLISHED[name][5]
    assert count == sum(int(np.prod(shape)) for shape in shapes(name).values())
    assert [s.stride for s in config.stages for _ in range(s.latents)] == [
        config.side // r for r, _ in parsed(PUBLISHED[name][1])
    ]
    assert recipe.crop == config.side


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The architecture of TINY as a config.toml."""
    def stage(stride: int, width: int, latents: int, blocks: int) -> StageConfig:
        pixels = {"pixels": ((0, 0),), "blocks": (0,)} if stride == 1 else {}
        return StageConfig(stride, width, width // 4, latents, 16, blocks, **pixels)  # type: ignore[arg-type]

    stages = (stage(8, 32, 1, 2), stage(2, 24, 2, 2), stage(1, 16, 2, 3))
    path = tmp_path_factory.mktemp("published") / "tiny.toml"
    config = ModelConfig(mixtures=3, stages=stages, tile=8, side=8, mean=120.0, std=60.0)
    write_config(path, config, TrainConfig(steps=4, batch=2, crop=8))
    return path


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def imported(name: str, preset: object, folder: Path) -> Path:
    torch.save(random_state(name), folder / "model.th")
    code, text = run("import", folder / "model.th", "--preset", preset, "-o", folder / "model")
    assert code == 0, text
    return folder / "model"


@pytest.mark.parametrize("name", ["tiny", "cifar10"])
def test_imported_models_give_the_published_elbo(name: str, tiny: Path, tmp_path: Path, photo: np.ndarray) -> None:
    folder = imported(name, tiny if name == "tiny" else name, tmp_path)
    model, _, _ = load_float(folder / "checkpoint-00000000")
    config = model.config
    x = random_crops(photo, 1 if name == "cifar10" else 4, config.side, (0,)).double()
    torch.manual_seed(5)
    terms = elbo(model.double(), x)
    ours = [t.sum(1) for t in terms.kl_nats] + terms.nll_nats
    torch.manual_seed(5)
    theirs = straight_line(name, random_state(name), x[:, [1, 0, 2]].to(torch.uint8), config)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_what_import_refuses(tiny: Path, tmp_path: Path) -> None:
    state = random_state("tiny")
    path = tmp_path / "model.th"

    def refused(values: object, message: str) -> None:
        torch.save(values, path)
        code, text = run("import", path, "--preset", tiny, "-o", tmp_path / "out")
        assert code == 1 and message in text and text.count("\n") == 1
        assert not (tmp_path / "out").exists()

    missing = dict(state)
    del missing["decoder.gain"]
    refused(missing, "1 missing keys: decoder.gain")
    refused(state | {"decoder.more": torch.zeros(1)}, "1 unknown keys: decoder.more")
    refused(state | {"decoder.gain": torch.zeros(1, 3, 1, 1)}, "decoder.gain is (1, 3, 1, 1), expected (1, 16, 1, 1)")
    refused([1, 2], "something else than a state dict")
    refused({"a": Path("x")}, "cannot be read as a state dict")  # a class: nothing of it is executed
    path.write_bytes(b"no zip file")
    code, text = run("import", path, "--preset", tiny, "-o", tmp_path / "out")
    assert code == 1 and "cannot be read" in text
    torch.save(state, path)
    code, text = run("import", path, "--preset", "cifar10-small", "-o", tmp_path / "out")
    assert code == 1 and "as published" in text


def test_an_imported_model_codes(tiny: Path, tmp_path: Path, photo: np.ndarray) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for n in range(3):
        (images / f"{n}.png").write_bytes(write_image(photo[8 * n : 8 * n + 40, :48], {}, ".png"))
    torch.save({f"module.{k}": v for k, v in random_state("tiny").items()}, tmp_path / "model.th")
    code, text = run("import", tmp_path / "model.th", "--preset", tiny, "-o", tmp_path / "m", "--data", images)
    assert code == 0 and "exact_elbo_bpd" in text, text
    for pixels in (photo[:40, :56], photo[:13, :9], np.repeat(photo[:16, :16, :1], 3, 2)):
        source, coded, back = (tmp_path / f"a{suffix}" for suffix in (".png", ".vdz", ".back.png"))
        source.write_bytes(write_image(np.ascontiguousarray(pixels), {}, ".png"))
        code, text = run("compress", source, "-o", coded, "--model", tmp_path / "m", "--force")
        assert code == 0, text
        code, text = run("decompress", coded, "-o", back, "--model", tmp_path / "m", "--force")
        assert code == 0, text
        assert np.array_equal(read_rgb(back), pixels)
    code, text = run("compress", images, "-o", tmp_path / "set.vdz", "--model", tmp_path / "m")
    assert code == 0 and "3 images" in text, text
    code, text = run("decompress", tmp_path / "set.vdz", "-o", tmp_path / "restored", "--model", tmp_path / "m")
    assert code == 0, text
    for source in images.iterdir():
        assert np.array_equal(read_rgb(tmp_path / "restored" / source.name), read_rgb(source))


def test_a_published_model_trains_and_samples(tiny: Path, tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "images").mkdir()
    for n, half in enumerate((photo[:, :80], photo[:, 80:])):
        (tmp_path / "images" / f"{n}.png").write_bytes(write_image(np.ascontiguousarray(half), {}, ".png"))
    code, text = run("train", "--model", tiny, "--data", tmp_path / "images", "--out", tmp_path / "run")
    assert code == 0, text
    code, text = run("sample", "--model", tmp_path / "run", "-n", 4, "-o", tmp_path / "samples.png")
    assert code == 0 and "4 images of 8x8" in text, text
    code, text = run("sample", "--model", tmp_path / "run", "--size", 16, "-o", tmp_path / "larger.png")
    assert code == 1 and text == "Error: this model is for images of 8x8, not of 16x16\n"


def test_tables_of_functions() -> None:
    x = torch.linspace(-12, 12, 100_001)
    assert float((gelu(x) - F.gelu(x.double())).abs().max()) < 3e-4
    table = tanh_table(torch.device("cpu"))
    assert float((table - torch.tanh(torch.linspace(-6, 6, len(table)).double())).abs().max()) <= 2.0**-13 + 1e-9
