"""Images to segments and back: every kind of image, every damage that checksums do not show, and what it costs."""

from __future__ import annotations

import dataclasses
import tracemalloc
from io import BytesIO

import numpy as np
import pytest
from codec_samples import coast_crops, png, screenshot
from image_samples import (
    CODABLE,
    DEEP,
    FILES_ONLY,
    ICC,
    INDEXED,
    INKS,
    TRANSPARENT,
    XMP,
    decoded,
    exif,
    scanned,
    stretched,
)
from PIL import Image

from vdvae_codec import transforms
from vdvae_codec.codec import pipeline, tiles
from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.errors import FormatError, ImageError, ModelError, VdvaeCodecError
from vdvae_codec.format.vdz import Entry, Segment
from vdvae_codec.images.files import Picture, picture_of, read_picture
from vdvae_codec.transforms.chroma import mirrored

SIZES = [(1, 1), (1, 17), (47, 33), (64, 64), (97, 100), (100, 9)]


@pytest.fixture(scope="module")
def photo_model() -> Released:
    return load_released("photo-2", "cpu")


def there_and_back(pictures: list[Picture], released: Released, fallback: bool = False) -> pipeline.Encoded:
    """Checks that they come back, and returns what they became."""
    encoded = pipeline.encode(pictures, released, fallback=fallback)
    back = pipeline.decode(encoded.segment, released)
    assert [(p.name, p.modified, p.width, p.height) for p in back] == [
        (p.name, p.modified, p.width, p.height) for p in pictures
    ]
    for before, after in zip(pictures, back):
        if after.data:
            assert after.data == before.data and after.suffix == before.suffix
        elif before.pixels is not None:
            assert after.pixels is not None and after.pixels.dtype == before.pixels.dtype
            assert np.array_equal(after.pixels, before.pixels) and after.metadata == before.metadata
    return encoded


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_images_of_all_sizes(tiny_model: Released, photo: np.ndarray, size: tuple[int, int], channels: int) -> None:
    pixels = photo[: size[0], : size[1], :channels]
    encoded = there_and_back([picture_of(pixels)], tiny_model)
    (entry,) = encoded.segment.entries
    assert (entry.shape, entry.metadata) == (pixels.shape, {})
    segment = encoded.segment
    assert sum(segment.groups) == -(-size[0] // 32) * -(-size[1] // 32)
    if segment.stacks:
        assert segment.direct == len(segment.stacks) == len(segment.groups)
    else:
        assert segment.direct == segment.groups[0] == 1


def test_images_of_many_shapes_share_a_segment(tiny_model: Released, photo: np.ndarray) -> None:
    shapes = [*SIZES, *SIZES[:4], (32, 32), (32, 32), (64, 64)]
    pictures = [picture_of(photo[:h, :w, : 1 + 2 * (n % 2)], f"{n}", n) for n, (h, w) in enumerate(shapes)]
    apart = sum(len(pipeline.encode([p], tiny_model, fallback=False).segment.payload) for p in pictures)
    together = there_and_back(pictures, tiny_model)
    assert len(together.segment.payload) < apart - 4 * len(pictures)


@pytest.mark.parametrize("level, channels", [(0, 3), (128, 1), (255, 3)])
def test_flat_images_pay_for_themselves(tiny_model: Released, level: int, channels: int) -> None:
    encoded = there_and_back([picture_of(np.full((64, 100, channels), level, np.uint8))], tiny_model)
    assert 0 < encoded.initial_bits < 8 * encoded.segment.word_bytes
    small = [picture_of(np.full((8 + 8 * (n % 3), 16, channels), level, np.uint8), f"{n}") for n in range(9)]
    there_and_back(small, tiny_model)


def test_noise_comes_back(tiny_model: Released) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for pixels in (noise, noise // 128 * 255):  # the second is far from what any model expects
        there_and_back([picture_of(pixels)], tiny_model)


@pytest.mark.parametrize("name", [*CODABLE, *DEEP, *INKS, *TRANSPARENT, *INDEXED, *FILES_ONLY])
def test_files_of_every_kind(tiny_model: Released, name: str) -> None:
    data = (CODABLE | DEEP | INKS | TRANSPARENT | INDEXED | FILES_ONLY)[name]
    picture = read_picture(data, name, 7)
    encoded = there_and_back([picture], tiny_model)
    (entry,) = encoded.segment.entries
    assert entry.coded == (name in CODABLE | DEEP | INKS | TRANSPARENT) and bool(entry.depth) == (name in DEEP)
    if name in FILES_ONLY:
        assert entry.original and encoded.segment.payload == data and encoded.segment.model == ""
        assert pipeline.decode(encoded.segment)[0].to_bytes() == (data, picture.suffix)


def test_metadata_and_names(photo_model: Released, photo: np.ndarray) -> None:
    metadata = {"icc": ICC, "exif": exif(), "xmp": XMP}
    coded = dataclasses.replace(picture_of(photo[:40, :50]), metadata=metadata, name="a/ä.png", modified=-3)
    blocks = np.repeat(np.repeat(photo[:5, :7], 8, 0), 8, 1)
    graphic = dataclasses.replace(picture_of(blocks), metadata=metadata, name="b")
    clear = png(np.zeros((64, 64, 4), np.uint8), compress_level=0, exif=exif(), icc_profile=ICC)
    encoded = there_and_back([coded, graphic, read_picture(clear, "c.png")], photo_model, fallback=True)
    assert [e.suffix for e in encoded.segment.entries] == ["", ".webp", ""]
    back = pipeline.decode(encoded.segment, photo_model)
    assert [p.metadata for p in back[:2]] == [metadata, metadata]
    assert back[2].portable() == {"icc": ICC, "exif": exif()}
    assert back[2].pixels is not None and back[2].pixels.shape == (64, 64, 4)
    again = read_picture(back[0].to_bytes(".tif")[0], "x.tif")
    assert again.pixels is not None and np.array_equal(again.pixels, photo[:40, :50]) and again.portable()["icc"] == ICC


@pytest.mark.parametrize("channels", [1, 3])
def test_fallback_is_never_worse_than_the_input(tiny_model: Released, photo: np.ndarray, channels: int) -> None:
    blocks = np.repeat(np.repeat(photo[:8, :8, :channels], 8, 0), 8, 1)
    picture = read_picture(png(blocks), "x.png")
    encoded = there_and_back([picture], tiny_model, fallback=True)
    assert not encoded.segment.entries[0].coded and len(encoded.segment.payload) <= len(picture.data)
    forced = there_and_back([picture], tiny_model)
    assert forced.segment.entries[0].coded and len(forced.segment.payload) > len(encoded.segment.payload)
    tight = read_picture(png(blocks, optimize=True), "x.png")
    noise = dataclasses.replace(tight, metadata={"xmp": np.random.default_rng(0).bytes(5000)})
    assert there_and_back([noise], tiny_model, fallback=True).segment.entries[0].original


def test_fallback_is_chosen_for_each_image(photo_model: Released) -> None:
    photos = [read_picture(png(crop), f"{n}.png") for n, crop in enumerate(coast_crops()[8:10])]
    screens = [read_picture(png(screenshot(n)), f"{n}-screen.png") for n in range(2)]
    pictures = [photos[0], screens[0], photos[1], screens[1]]
    segment = there_and_back(pictures, photo_model, fallback=True).segment
    assert [e.coded for e in segment.entries] == [True, False, True, False]
    assert {e.suffix for e in segment.entries if not e.coded} <= {".png", ".webp"}
    files = [file for file in segment.files() if file is not None]
    assert all(len(file) <= len(screen.data) for file, screen in zip(files, screens))


def test_jpegs_are_coded_though_their_files_are_smaller(photo_model: Released, photo: np.ndarray) -> None:
    out = BytesIO()
    Image.fromarray(photo).save(out, "JPEG", quality=60)
    encoded = there_and_back([read_picture(out.getvalue(), "x.jpg")], photo_model, fallback=True)
    assert encoded.segment.entries[0].coded and len(encoded.segment.payload) > len(out.getvalue())


def test_what_each_image_costs_adds_up(tiny_model: Released, photo: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    images = [photo[:64, :64], noise, np.full((64, 64, 3), 90, np.uint8), photo[:50, :70, :1], photo]
    words = tiles.encode(images, [None] * 5, tiny_model)
    assert words.image_bits.shape == (5,) and words.image_bits.sum() == pytest.approx(8 * len(words.payload), abs=64)
    assert words.image_bits[2] < words.image_bits[0] < words.image_bits[1]
    alone = [tiles.encode([image], [None], tiny_model) for image in images]
    for bits, other in zip(words.image_bits[1:], alone[1:]):  # the first one pays the initial bits
        assert bits == pytest.approx(other.image_bits[0] - other.initial_bits, rel=0.05, abs=800)


def test_transforms_pay(photo_model: Released, photo: np.ndarray) -> None:
    for pixels, name in ((scanned(photo), "PhotoCD"), (decoded(photo, "JPEG", quality=90), "JPEG"),
                         (stretched(photo), "levels")):
        encoded = there_and_back([picture_of(pixels)], photo_model)
        assert transforms.names(encoded.segment.entries[0].side_info)[0] == name
        plain = tiles.encode([pixels], [None], photo_model)
        assert len(encoded.segment.payload) < 0.95 * len(plain.payload)


def test_grey_in_three_colours_costs_no_more_than_one(photo_model: Released, photo: np.ndarray) -> None:
    grey = photo[..., :1]
    three, one = (there_and_back([picture_of(p)], photo_model) for p in (grey.repeat(3, 2), grey))
    assert three.segment.word_bytes < 1.1 * one.segment.word_bytes


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    """(300, 517, 3) uint8, of several tiles."""
    coast = np.concatenate([np.concatenate(coast_crops(256)[:3], 1), np.concatenate(coast_crops(256)[3:], 1)], 0)
    return np.ascontiguousarray(scanned(coast[100:402, 100:618])[:300, :517])


def test_colours_between_others_are_not_coded_over_several_tiles(photo_model: Released, scan: np.ndarray) -> None:
    coded = pipeline.forward(scan, photo_model)
    assert transforms.names(coded.side_info) == ["PhotoCD", "chroma"]
    assert coded.chroma_mask is not None and coded.chroma_mask.shape == (150, 259) and coded.chroma_mask.mean() > 0.7
    encoded = there_and_back([picture_of(scan)], photo_model)
    assert encoded.segment.groups == (6, 6)
    size = encoded.segment.word_bytes + len(coded.side_info)
    unmasked = tiles.encode([coded.pixels], [None], photo_model)
    plain = tiles.encode([scan], [None], photo_model)
    assert size < 0.95 * len(unmasked.payload) and size < 0.65 * len(plain.payload)


@pytest.mark.parametrize("flips", range(4))
@pytest.mark.parametrize("size", [(120, 160), (91, 117), (100, 151), (119, 100)])
def test_scans_of_odd_sizes_come_back(
    tiny_model: Released, photo: np.ndarray, flips: int, size: tuple[int, int]
) -> None:
    """Whichever pixels of 2x2 hold the colours that were kept."""
    pixels = np.ascontiguousarray(mirrored(scanned(photo)[: size[0], : size[1]], flips))
    coded = pipeline.forward(pixels, tiny_model)
    assert coded.chroma_mask is not None and coded.chroma_mask.mean() > 0.7
    there_and_back([picture_of(pixels)], tiny_model)


def test_models_that_cannot_leave_colours_out_code_them(photo: np.ndarray) -> None:
    released = load_released("mnist", "cpu")
    coded = pipeline.forward(scanned(photo), released)
    assert transforms.names(coded.side_info) == ["PhotoCD"] and coded.chroma_mask is None
    encoded = there_and_back([picture_of(scanned(photo)[:64, :64])], released)
    entry = dataclasses.replace(encoded.segment.entries[0], metadata={"side_info": b"\5\x81\1" + bytes(129)})
    with pytest.raises(FormatError, match="chroma_mask: model 'mnist' has none"):
        pipeline.decode(dataclasses.replace(encoded.segment, entries=(entry,)))


def refused(segment: Segment, released: Released, kind: type[VdvaeCodecError], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        pipeline.decode(segment, released)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def segment(tiny_model: Released, photo: np.ndarray) -> Segment:
    """Six tiles in growing groups on one stack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "FEW_TILES", 0)
        return pipeline.encode([picture_of(photo[:40, :70])], tiny_model, fallback=False).segment


def test_other_words(segment: Segment, tiny_model: Released) -> None:
    words = np.frombuffer(segment.payload, "<u4")
    assert len(words) > 500
    rng = np.random.default_rng(0)
    noise = rng.integers(1, 1 << 32, len(words), np.uint32)
    others = [noise, noise[:50], words[1:], words[:-1], words[::-1], np.append(words, 1), np.insert(words, 0, 1)]
    others += [words ^ (np.arange(len(words)) == n) for n in (0, 1, len(words) // 2, len(words) - 1)]
    for other in [*others, words[:0], np.append(words, 0)]:
        payload = other.astype("<u4").tobytes()
        spoilt = dataclasses.replace(segment, payload=payload, word_bytes=len(payload))
        refused(spoilt, tiny_model, FormatError, "left over|ends before|damaged|checksum|cannot be zero")


def test_other_words_of_a_group_apart(tiny_model: Released, photo: np.ndarray) -> None:
    segment = pipeline.encode([picture_of(photo[:32, :32])], tiny_model, fallback=False).segment
    words = np.frombuffer(segment.payload, "<u4")
    assert segment.stacks == (segment.word_bytes,) and segment.groups == (1,)
    others = [np.random.default_rng(0).integers(1, 1 << 32, len(words), np.uint32), words[::-1]]
    others += [words ^ (np.arange(len(words)) == n) for n in (0, len(words) // 2, len(words) - 1)]
    for other in others:
        spoilt = dataclasses.replace(segment, payload=other.astype("<u4").tobytes())
        refused(spoilt, tiny_model, FormatError, "left over|ends before|damaged|checksum|cannot be zero")


@pytest.mark.parametrize(
    "image, fields, message",
    [
        ({"width": 71}, {}, "left over|ends before|damaged|checksum"),
        ({"channels": 1}, {}, "left over|ends before|damaged|checksum"),
        ({}, {"groups": (1, 1, 1, 1, 1, 1)}, "left over|ends before|damaged|checksum"),
        ({}, {"groups": (6,)}, "left over|ends before|damaged|checksum"),
        ({}, {"direct": 0}, "left over|ends before|damaged|checksum"),
        ({}, {"direct": 3}, "left over|ends before|damaged|checksum"),
        ({}, {"pixels_crc": 0}, "checksum"),
        ({}, {"groups": (1, 2)}, "do not fit"),
        ({}, {"groups": (7,)}, "do not fit"),
        ({}, {"groups": (), "direct": 0}, "do not fit"),
        ({"width": 20000, "height": 20000}, {"groups": (625 * 625,)}, "larger than any"),
        ({"width": 2**32 - 1, "height": 2**32 - 1}, {"groups": (2**54,)}, "more pixels than"),
        ({"width": 2**32 - 1, "height": 1}, {"groups": (2**27,)}, "more pixels than"),
        ({"metadata": {"side_info": b"\5\0"}}, {}, "chroma is damaged"),
        ({"metadata": {"side_info": b"\4\1?"}}, {}, "levels are damaged"),
        ({"metadata": {"side_info": b"\x63\0"}}, {}, "transform 99 is unknown"),
        ({"metadata": {"side_info": b"\3"}}, {}, "damaged"),
    ],
)
def test_other_tables(
    segment: Segment, tiny_model: Released, image: dict[str, object], fields: dict[str, object], message: str
) -> None:
    assert segment.groups == (1, 2, 3)
    entry = dataclasses.replace(segment.entries[0], **image)  # type: ignore[arg-type]
    refused(dataclasses.replace(segment, entries=(entry,), **fields), tiny_model, FormatError, message)  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [b"", b"\xef\xcd\xab\x89", b"\1\0\0\0", b"\xff\xff\xff\xff" * 2])
def test_few_words_for_many_pixels(causal_model: Released, words: bytes) -> None:
    """Refused before memory is asked for, or in the first group, of all that the table names."""
    side, config = 2500, causal_model.config
    groups = tuple(len(g) for run in tiles.runs_of([(side, side, 3)], config) for g in tiles.groups_of(run, config))
    payload = words * len(groups)
    entry = Entry("", None, side, side, 3)
    segment = Segment(
        (entry,), causal_model.name, causal_model.digest, groups, len(groups), 0, len(payload), payload,
        (len(words),) * len(groups),
    )
    tracemalloc.start()
    refused(segment, causal_model, FormatError, "ends before|damaged" if words else "no words for so many pixels")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 300 << 20


def test_damaged_chroma_masks(tiny_model: Released, photo: np.ndarray) -> None:
    segment = pipeline.encode([picture_of(scanned(photo))], tiny_model, fallback=False).segment
    (entry,) = segment.entries
    rng = np.random.default_rng(0)
    for place in rng.choice(len(entry.side_info), 4, replace=False):
        spoilt = bytearray(entry.side_info)
        spoilt[place] ^= 255
        other = dataclasses.replace(entry, metadata={"side_info": bytes(spoilt)})
        with pytest.raises(FormatError):
            pipeline.decode(dataclasses.replace(segment, entries=(other,)), tiny_model)


def test_stored_files_that_are_no_images_of_that_size(tiny_model: Released) -> None:
    screen = screenshot(0, 40, 30)
    segment = pipeline.encode([picture_of(screen)], tiny_model).segment
    (entry,) = segment.entries
    assert not entry.coded and not entry.original
    with pytest.raises(ImageError, match="not of the size"):
        pipeline.decode(dataclasses.replace(segment, entries=(dataclasses.replace(entry, width=41),)))
    with pytest.raises(VdvaeCodecError):
        pipeline.decode(dataclasses.replace(segment, payload=bytes(len(segment.payload))))


def test_stored_files_in_place_of_others_are_png_or_webp_alone(tiny_model: Released) -> None:
    segment = pipeline.encode([picture_of(screenshot(0, 40, 30))], tiny_model).segment
    (entry,) = segment.entries
    file = picture_of(screenshot(0, 40, 30)).to_bytes(".bmp")[0]
    forged = dataclasses.replace(entry, file_bytes=len(file))
    with pytest.raises(ImageError, match="not an image file that can be read"):
        pipeline.decode(dataclasses.replace(segment, entries=(forged,), payload=file))


def test_another_model_is_refused_by_name_and_digest(segment: Segment, tiny_model: Released) -> None:
    other = dataclasses.replace(segment, digest=bytes(range(16)))
    refused(other, tiny_model, ModelError, f"'tiny'.*{other.digest.hex()}")
    expected = pipeline.decode(segment, tiny_model)[0].pixels
    for name in ("photo-2", "../elsewhere", "a" * 255):  # the name is a hint, the digest decides
        named = dataclasses.replace(segment, model=name)
        assert np.array_equal(pipeline.decode(named, tiny_model)[0].pixels, expected)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match=segment.digest.hex()):
            pipeline.decode(named)


def test_verification_sees_every_flipped_bit(photo_model: Released, photo: np.ndarray) -> None:
    pictures = [picture_of(photo[:40, :70], "a"), read_picture(FILES_ONLY["packed.tga"], "b"),
                picture_of(screenshot(0, 40, 30), "c")]
    segment = pipeline.encode(pictures, photo_model).segment
    assert [e.coded for e in segment.entries] == [True, False, False]
    pipeline.verify(pictures, segment, photo_model)
    rng = np.random.default_rng(0)
    ends = np.cumsum([segment.word_bytes, *(e.file_bytes for e in segment.entries if not e.coded)])
    for start, end in zip([0, *ends], ends):
        for place in rng.integers(start, end, 4):
            payload = bytearray(segment.payload)
            payload[place] ^= 1 << rng.integers(8)
            spoilt = dataclasses.replace(segment, payload=bytes(payload))
            if end < ends[-1]:  # not every bit of a WebP counts
                with pytest.raises(VdvaeCodecError):
                    pipeline.verify(pictures, spoilt, photo_model)
    with pytest.raises(VdvaeCodecError, match="a: does not decode to the same pixels; nothing was written"):
        pipeline.verify([picture_of(photo[1:41, :70], "a"), *pictures[1:]], segment, photo_model)
    with pytest.raises(VdvaeCodecError, match="c: does not decode to the same pixels; nothing was written"):
        pipeline.verify([*pictures[:2], picture_of(photo[:30, :40], "c")], segment, photo_model)


def test_pixels_that_no_image_holds() -> None:
    for array in (np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ImageError, match=r"expected \(H, W, 1 to 4\) uint8"):
            picture_of(array)
