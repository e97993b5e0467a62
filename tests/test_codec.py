import dataclasses
import math
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, random_crops, untrained
from laws import TABLES, check_codec, random_stack
from PIL import Image

from vdvae_codec import api
from vdvae_codec.coding.codec import Codec
from vdvae_codec.coding.schedule import MIN_BITS
from vdvae_codec.coding.stack import Stack
from vdvae_codec.container import Container, Kind
from vdvae_codec.errors import FormatError, ImageError, ModelError, VdvaeCodecError
from vdvae_codec.exact.quantise import quantise_model
from vdvae_codec.hierarchy import Group, exact_elbo, pop_group, push_group
from vdvae_codec.images import Box, read_picture, tile_boxes, tile_grid, write_image
from vdvae_codec.model.layers import LatentLayer
from vdvae_codec.released import Released
from vdvae_codec.tiles import encode, runs_of, tensor_of, tile_of

CPU = torch.device("cpu")
LATENTS = 4 * (16 + 64)  # of a tile of 32x32: channels, positions at both strides
BITS_AT_MODE = math.log2(2 * math.sqrt(2 * math.pi))  # of N(0, 1) on a grid of 1/2
SIZES = [(1, 1), (1, 17), (47, 33), (64, 64), (100, 9)]


def cut(pixels: np.ndarray, boxes: list[Box], tile: tuple[int, int]) -> tuple[torch.Tensor, Group]:
    return tensor_of([pixels], [(0, box) for box in boxes], tile, CPU)


def group_codec(released: Released, pixels: np.ndarray, direct: bool) -> tuple[Codec, np.ndarray]:
    """All tiles of pixels (H, W, C) as one group: its codec and what it codes, (B, 3, h, w)."""
    tile = tile_grid(pixels.shape[0], pixels.shape[1], released.config.tile, released.config.max_stride)
    x, group = cut(pixels, tile_boxes(pixels.shape[0], pixels.shape[1], tile), tile)

    def push(stack: Stack, x: np.ndarray) -> None:
        bits = push_group(released.model, released.tables, group, torch.from_numpy(x), stack, direct)
        assert bits is not None and (bits > 0) == direct

    def pop(stack: Stack) -> np.ndarray:
        return pop_group(released.model, released.tables, group, stack, direct).numpy()

    return Codec(push, pop), x.numpy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("direct, words", [(True, 0), (True, 7), (False, 2000)])
def test_groups(
    tiny_model: Released, photo: np.ndarray, size: tuple[int, int], channels: int, direct: bool, words: int
) -> None:
    codec, x = group_codec(tiny_model, photo[: size[0], : size[1], :channels], direct)
    assert check_codec(codec, x, words) > 0


def test_groups_of_noise_and_extremes(tiny_model: Released) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 40, 3), np.uint8)
    for pixels in (noise, noise // 128 * 255, np.zeros_like(noise), np.full_like(noise, 255)):
        for direct in (True, False):
            check_codec(*group_codec(tiny_model, pixels, direct), words=4000)


def test_borrowing_is_cheaper_than_paying(tiny_model: Released, photo: np.ndarray) -> None:
    assert all(layer.alive.all() for layer in tiny_model.model.layers if isinstance(layer, LatentLayer))
    borrowed, direct = (check_codec(*group_codec(tiny_model, photo[:64, :64], d), words=4000) for d in (False, True))
    assert borrowed < direct - 1.5 * 4 * LATENTS


@pytest.mark.parametrize("words", [0, 1, 2, 20])
def test_a_group_that_wants_more_than_there_is_changes_nothing(
    tiny_model: Released, photo: np.ndarray, words: int
) -> None:
    x, group = cut(photo, [(0, 0, 32, 32), (32, 0, 64, 32)], (32, 32))
    stack = random_stack(words)
    before = stack.words()
    assert push_group(tiny_model.model, tiny_model.tables, group, x, stack, direct=False) is None
    assert np.array_equal(stack.words(), before)
    direct = push_group(tiny_model.model, tiny_model.tables, group, x, stack, direct=True)
    assert direct is not None and direct > 32 * 20 - MIN_BITS  # what it would have wanted


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [*SIZES, (97, 100)])
def test_images(tiny_folder: Path, photo: np.ndarray, size: tuple[int, int], channels: int) -> None:
    pixels = photo[: size[0], : size[1], :channels]
    data, report = api.compress(write_image(pixels, {}, ".png"), "x.png", str(tiny_folder), "cpu", fallback=False)
    assert (report.kind, report.height, report.width, report.channels) == ("model", *size, channels)
    assert report.output_bytes == len(data) == report.header_bytes + report.metadata_bytes + report.payload_bytes
    assert report.groups[0] == 1 and sum(report.groups) == -(-size[0] // 32) * -(-size[1] // 32)
    image, suffix = api.decompress(data, model=str(tiny_folder), device="cpu")
    again = read_picture(image, "x.png")
    assert suffix == ".png" and again.pixels is not None and np.array_equal(again.pixels, pixels)


def code(released: Released, pixels: np.ndarray) -> tuple[Container, float]:
    """Codes pixels (H, W, C), checks that they come back; returns the container and the initial bits."""
    shape = (pixels.shape[0], pixels.shape[1], pixels.shape[2])
    tile = tile_of(shape, released.config)
    coded = encode([pixels], runs_of([shape], [tile]), released)
    container = Container(
        kind=Kind.MODEL, channels=shape[2], width=shape[1], height=shape[0], tile=tile, groups=coded.groups,
        model=released.name, digest=released.digest, metadata={}, payload=coded.payload, pixels_crc=0,
    )  # fmt: skip
    assert coded.direct == 1
    assert np.array_equal(api.decode_coded(container, released), pixels)
    return container, coded.initial_bits


@pytest.fixture(scope="module")
def idle_model(photo: np.ndarray) -> Released:
    """A model whose posteriors are its priors, N(0, 1) on a grid of 1/2."""
    model = untrained(TINY)
    layers = [layer for layer in model.layers if isinstance(layer, LatentLayer)]
    for net in [net for layer in layers for net in (layer.prior, layer.posterior)]:
        net.c4.weight.zero_()
        net.c4.bias.zero_()
    exact = quantise_model(model, [random_crops(photo, 4, 64, (0,))])
    for layer in exact.layers:
        if isinstance(layer, LatentLayer):
            layer.alive.fill_(True)
    return Released("idle", bytes(16), TINY, exact, TABLES, CPU)


def test_latents_whose_posterior_is_the_prior_cost_nothing(idle_model: Released, photo: np.ndarray) -> None:
    container, initial_bits = code(idle_model, photo)
    x, group = cut(photo, tile_boxes(120, 160, container.tile), container.tile)
    terms = exact_elbo(idle_model.model, idle_model.tables, group, x)
    assert terms.kl_bits == [0, 0]
    assert initial_bits == pytest.approx(LATENTS * BITS_AT_MODE, rel=0.05)  # scales are rounded to 1/8 nat
    assert 8 * len(container.payload) - initial_bits == pytest.approx(sum(terms.pixel_bits), rel=3e-3)


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_flat_images(tiny_model: Released, level: int, channels: int) -> None:
    container, initial_bits = code(tiny_model, np.full((64, 100, channels), level, np.uint8))
    assert 0 < initial_bits < 8 * len(container.payload)


def test_file_bits_are_the_elbo_and_named_overheads(tiny_model: Released, photo: np.ndarray) -> None:
    container, initial_bits = code(tiny_model, photo)
    assert container.groups == (1, 2, 4, 8, 5)
    x, group = cut(photo, tile_boxes(120, 160, container.tile), container.tile)
    terms = exact_elbo(tiny_model.model, tiny_model.tables, group, x)
    elbo_bits = sum(terms.kl_bits) + sum(terms.pixel_bits)
    assert sum(terms.kl_bits) > 0.01 * elbo_bits  # more than the difference allowed below
    net_bits = 8 * len(container.payload) - initial_bits
    # Both sides draw their own latents: 20 tiles with a deviation of some 20 bits each, of 14,000 bits each; measured
    # difference 0.03 %. The coder's own overhead is at most two words.
    assert net_bits == pytest.approx(elbo_bits, rel=3e-3)


def test_rates(tiny_folder: Path, tiny_model: Released, photo: np.ndarray) -> None:
    data, report = api.compress(write_image(photo, {}, ".png"), "x.png", str(tiny_folder), "cpu", fallback=False)
    rates = api.rates(data, str(tiny_folder), "cpu")
    assert rates["net_bpd"] == pytest.approx(rates["elbo_bpd"], rel=0.005)
    assert rates["elbo_bpd"] == pytest.approx(sum(rates["kl_bpd"]) + sum(rates["pixel_bpd"]))
    assert len(rates["kl_bpd"]) == 2 and len(rates["pixel_bpd"]) == 10
    assert rates["initial_bpd"] * photo.size == pytest.approx(report.initial_bits)
    assert rates["file_bpd"] == report.bpd == 8 * len(data) / photo.size
    overhead = 8 * (report.header_bytes + report.metadata_bytes) + report.initial_bits
    assert rates["file_bpd"] - rates["net_bpd"] == pytest.approx(overhead / photo.size)
    shown = api.info(data)
    assert {shown[f"{part}_bytes"] for part in ("header", "metadata", "payload")} < set(vars(report).values())
    assert shown["digest"] == tiny_model.digest.hex() and shown["file_bytes"] == len(data)


@pytest.mark.parametrize("channels", [1, 3])
def test_fallback_is_never_worse_than_the_input(tiny_folder: Path, photo: np.ndarray, channels: int) -> None:
    flat = np.repeat(np.repeat(photo[:8, :8, :channels], 8, 0), 8, 1)
    png = write_image(flat, {}, ".png")
    data, report = api.compress(png, "x.png", str(tiny_folder), "cpu")
    forced, _ = api.compress(png, "x.png", str(tiny_folder), "cpu", fallback=False)
    assert report.kind == "file" and len(data) < len(png) + 100 and len(data) < len(forced)
    for vdz in (data, forced):
        image, _ = api.decompress(vdz, model=str(tiny_folder), device="cpu")
        assert np.array_equal(read_picture(image, "x.png").pixels, flat)
    with pytest.raises(FormatError, match="itemised"):
        api.rates(data)


def test_stored_files_come_back_under_their_own_suffix_only() -> None:
    out = BytesIO()
    Image.fromarray(np.arange(60000, 60064, dtype=np.uint16).reshape(8, 8)).save(out, "PNG")
    data, report = api.compress(out.getvalue(), "x.png")
    assert (report.kind, report.model, report.initial_bits) == ("file", "", 0)
    assert api.decompress(data) == api.decompress(data, ".png") == (out.getvalue(), ".png")
    with pytest.raises(ImageError, match=r"only be written as \.png"):
        api.decompress(data, ".tif")
    with pytest.raises(ImageError, match="not an image"):
        api.compress(b"no image", "x.png")


@pytest.fixture(scope="module")
def vdz(tiny_folder: Path, photo: np.ndarray) -> Container:
    data, _ = api.compress(write_image(photo[:40, :70], {}, ".png"), "x.png", str(tiny_folder), "cpu", fallback=False)
    return Container.from_bytes(data)


def refused(container: Container, tiny_folder: Path, kind: type[VdvaeCodecError], message: str) -> None:
    """Its checksums are right, so only decoding can tell."""
    with pytest.raises(kind, match=message) as error:
        api.decompress(container.to_bytes(), model=str(tiny_folder), device="cpu")
    assert "\n" not in str(error.value)


def test_other_payloads_with_good_checksums(vdz: Container, tiny_folder: Path) -> None:
    words = np.frombuffer(vdz.payload, "<u4")
    assert len(words) > 500
    rng = np.random.default_rng(0)
    noise = rng.integers(1, 1 << 32, len(words), np.uint32)
    payloads = [noise, noise[:50], words[1:], words[:-1], words[::-1], np.append(words, 1), np.insert(words, 0, 1)]
    payloads += [words ^ (np.arange(len(words)) == n) for n in (0, 1, len(words) // 2, len(words) - 1)]
    for other in [*payloads, words[:0]]:
        payload = other.astype("<u4").tobytes()
        message = "left over|checksum|cannot be zero"
        refused(dataclasses.replace(vdz, payload=payload), tiny_folder, FormatError, message)
    refused(dataclasses.replace(vdz, payload=vdz.payload + bytes(4)), tiny_folder, FormatError, "cannot be zero")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"width": 71}, "left over|checksum"),
        ({"channels": 1}, "left over|checksum"),
        ({"groups": (1, 1, 1, 1, 1, 1)}, "left over|checksum"),
        ({"groups": (6,)}, "left over|checksum"),
        ({"pixels_crc": 0}, "checksum"),
        ({"tile": (32, 24)}, "left over|checksum"),
        ({"tile": (20, 24), "groups": (6,)}, "no tiles of 20x24"),
        ({"tile": (64, 64), "groups": (2,)}, "no tiles of 64x64"),
        ({"tile": (32, 32), "width": 2**32 - 1, "height": 2**32 - 1, "groups": (2**54,)}, "larger than any"),
    ],
)
def test_other_headers_with_good_checksums(
    vdz: Container, tiny_folder: Path, fields: dict[str, object], message: str
) -> None:
    assert vdz.tile == (24, 24) and vdz.groups == (1, 2, 3)
    refused(dataclasses.replace(vdz, **fields), tiny_folder, FormatError, message)  # type: ignore[arg-type]


def test_another_model_is_refused_by_name_and_digest(vdz: Container, tiny_folder: Path) -> None:
    for fields in ({"digest": bytes(range(16))}, {"model": "photo-9"}, {"model": "../elsewhere"}, {"model": "a" * 255}):
        other = dataclasses.replace(vdz, **fields)  # type: ignore[arg-type]
        if "digest" in fields:
            refused(other, tiny_folder, ModelError, f"'{other.model}'.*{other.digest.hex()}")
        else:  # the name is a hint, the digest decides
            image, _ = api.decompress(other.to_bytes(), model=str(tiny_folder), device="cpu")
            assert image == api.decompress(vdz.to_bytes(), model=str(tiny_folder), device="cpu")[0]
        with pytest.raises(ModelError, match=other.digest.hex()):
            api.decompress(other.to_bytes(), device="cpu")


def test_every_cut_and_many_bit_flips(vdz: Container, tiny_folder: Path) -> None:
    data = vdz.to_bytes()
    for length in range(0, len(data), 7):
        with pytest.raises(FormatError):
            api.decompress(data[:length], model=str(tiny_folder), device="cpu")
    for bit in [*range(8 * 80), *range(8 * 80, 8 * len(data), 97)]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            api.decompress(bytes(damaged), model=str(tiny_folder), device="cpu")
