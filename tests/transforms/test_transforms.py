"""Laws of all transforms together: what went forward comes back, and damage is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from image_samples import decoded, natural, scanned, stretched

from vdvae_codec import transforms
from vdvae_codec.errors import FormatError
from vdvae_codec.transforms import BY_CODE, FIRST, THEN, base
from vdvae_codec.transforms.chroma import mirrored


def check(pixels: np.ndarray) -> transforms.Coded:
    """inverse(forward(x)) is x, and all that is known of the coded image fits."""
    before = pixels.copy()
    coded = transforms.forward(pixels)
    assert coded.pixels.shape == pixels.shape and coded.pixels.dtype == np.uint8
    kept = coded.pixels.copy()
    assert np.array_equal(transforms.inverse(coded.pixels, coded.side_info), before)
    assert np.array_equal(pixels, before) and np.array_equal(coded.pixels, kept)
    mask = transforms.chroma_mask(coded.side_info, *pixels.shape[:2])
    assert (mask is None) == (coded.chroma_mask is None) == ("chroma" not in transforms.names(coded.side_info))
    assert mask is None or np.array_equal(mask, coded.chroma_mask)
    if not coded.side_info:
        assert coded.pixels is pixels and transforms.inverse(pixels, b"") is pixels
    return coded


@pytest.fixture(scope="session")
def kinds(photo: np.ndarray) -> dict[str, np.ndarray]:
    """Images by what applies to them."""
    grey = photo[..., :1]
    return {
        "": photo,
        "JPEG": decoded(photo, "JPEG", quality=90),
        "WebP": decoded(photo, "WEBP", quality=80),
        "PhotoCD,chroma": scanned(photo),
        "levels": stretched(photo),
        "chroma": grey.repeat(3, 2),
        "levels,chroma": stretched(grey).repeat(3, 2),
    }


def test_what_applies(kinds: dict[str, np.ndarray]) -> None:
    for expected, pixels in kinds.items():
        assert ",".join(transforms.names(check(pixels).side_info)) == expected


def test_grey_images_have_levels_alone(photo: np.ndarray) -> None:
    assert transforms.names(check(photo[..., :1]).side_info) == []
    assert transforms.names(check(stretched(photo[..., :1])).side_info) == ["levels"]


def test_small_images_stay_as_they_are(kinds: dict[str, np.ndarray]) -> None:
    for pixels in kinds.values():
        assert check(pixels[:63, :65]).side_info == b""
    assert check(kinds["PhotoCD,chroma"][:64, :64]).side_info != b""


def random_images(photo: np.ndarray) -> Iterator[np.ndarray]:
    """Of all kinds, odd sizes, mirrored, with damage of their own: mixtures that no decoder gave."""
    rng = np.random.default_rng(0)
    for n in range(60):
        height, width = rng.integers(1, 120), rng.integers(1, 160)
        pixels = mirrored(photo, n % 4)[:height, :width].copy()
        if n % 3 == 0:
            pixels = natural(height, width, 3)
        kind = rng.integers(7)
        if kind == 0:
            pixels = decoded(pixels, "JPEG", quality=int(rng.integers(20, 100)), subsampling=int(rng.integers(3)))
        elif kind == 1:
            pixels = scanned(np.ascontiguousarray(photo))[:height, :width]
        elif kind == 2:
            pixels = stretched(pixels)
        elif kind == 3:
            pixels = pixels[..., rng.integers(3, size=3)]
        elif kind == 4:
            pixels = rng.integers(0, rng.integers(1, 257), (height, width, 3)).astype(np.uint8)
        elif kind == 5:
            pixels = (pixels // 64 * 64)[..., : rng.choice([1, 3])]
        pixels = mirrored(pixels, int(rng.integers(4))).copy()
        spots = rng.integers(0, pixels.size, rng.integers(5))
        pixels.ravel()[spots] = rng.integers(0, 256, len(spots))
        yield pixels


def test_random_images_come_back(photo: np.ndarray) -> None:
    applied = [name for pixels in random_images(photo) for name in transforms.names(check(pixels).side_info)]
    assert {"JPEG", "PhotoCD", "levels", "chroma"} <= set(applied)


def test_views_are_taken(photo: np.ndarray) -> None:
    for pixels in (scanned(photo)[::-1, ::-1], stretched(photo)[:, 1::2], scanned(photo).transpose(1, 0, 2)):
        check(pixels)


def test_side_info_cut_anywhere_is_named(kinds: dict[str, np.ndarray]) -> None:
    for pixels in kinds.values():
        coded, side_info, _ = transforms.forward(pixels)
        whole = [0]
        for code, own in base.unpack(side_info):
            whole.append(whole[-1] + len(base.pack([(code, own)])))
        for cut in set(range(len(side_info))) - set(whole):
            with pytest.raises(FormatError, match="side_info"):
                transforms.inverse(coded, side_info[:cut])
            with pytest.raises(FormatError, match="side_info"):
                transforms.names(side_info[:cut])
            with pytest.raises(FormatError, match="side_info"):
                transforms.chroma_mask(side_info[:cut], *coded.shape[:2])


def test_changed_side_info_gives_an_image_or_is_named(kinds: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    for pixels in kinds.values():
        coded, side_info, _ = transforms.forward(pixels)
        small = min(len(side_info), 40)  # where the structure is
        places = [*range(small), *(rng.integers(0, len(side_info), 20) if side_info else [])]
        for place in places:
            bad = bytearray(side_info)
            bad[place] ^= int(rng.integers(1, 256))
            try:
                assert transforms.inverse(coded, bytes(bad)).shape == pixels.shape
                transforms.chroma_mask(bytes(bad), *pixels.shape[:2])
            except FormatError as error:
                assert str(error).startswith("side_info") and "\n" not in str(error)


def test_random_side_info_gives_an_image_or_is_named(photo: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for n in range(500):
        own = rng.bytes(rng.integers(0, 80))
        parts = [(int(code), own) for code in rng.permutation([*BY_CODE])[: n % 3]]
        bad = base.pack(parts) + rng.bytes(rng.integers(0, 3))
        try:
            transforms.inverse(photo[:9, :7], bad)
        except FormatError as error:
            assert "\n" not in str(error)


def test_other_images_than_the_coded_one_are_no_crash(kinds: dict[str, np.ndarray]) -> None:
    for pixels in kinds.values():
        side_info = transforms.forward(pixels).side_info
        for other in (pixels[:50, :70], pixels[..., :1], pixels[:1, :1], 255 - pixels):
            try:
                assert transforms.inverse(other, side_info).shape == other.shape
            except FormatError as error:
                assert "\n" not in str(error)


def test_unknown_transforms_ask_for_a_newer_version(photo: np.ndarray) -> None:
    side_info = base.pack([(1, b""), (200, b"xyz")])
    assert transforms.names(side_info) == ["JPEG", "transform 200"]
    for use in (lambda: transforms.inverse(photo, side_info), lambda: transforms.chroma_mask(side_info, 120, 160)):
        with pytest.raises(FormatError, match="transform 200 is unknown: a newer vdvae-codec is needed"):
            use()


def test_a_transform_is_named_once() -> None:
    with pytest.raises(FormatError, match="damaged"):
        base.unpack(base.pack([(1, b""), (1, b"")]))


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 1 << 21])
def test_parts_are_unpacked_as_they_were_packed(length: int) -> None:
    parts = [(3, bytes(length)), (5, b"x")]
    assert base.unpack(base.pack(parts)) == parts


def test_lengths_without_end_are_named() -> None:
    for bad in (b"\1", b"\1\x80", b"\1" + b"\x80" * 1000, b"\1\xff\xff\xff\xff\x7f", b"\1\2x"):
        with pytest.raises(FormatError, match="damaged"):
            base.unpack(bad)


def test_codes_are_those_of_files() -> None:
    expected = {1: "JPEG", 2: "WebP", 3: "PhotoCD", 4: "levels", 5: "chroma"}
    assert {code: transform.name for code, transform in BY_CODE.items()} == expected
    assert len(BY_CODE) == len(FIRST) + len(THEN)


def test_no_torch_is_imported() -> None:
    program = "import sys, vdvae_codec.transforms; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
