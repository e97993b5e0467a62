import dataclasses

import numpy as np
import pytest
from image_samples import AROUND, CODABLE, GREY, ICC, RGB, natural, saved, with_chunks

from vdvae_codec.errors import ImageError
from vdvae_codec.images.chunks import chunks
from vdvae_codec.images.classical import best_file
from vdvae_codec.images.files import Picture, read_picture
from vdvae_codec.images.frame import framed


def decoded(picture: Picture) -> Picture:
    """As it comes out of a .vdz: without the file."""
    return dataclasses.replace(picture, data=b"")


@pytest.mark.parametrize("pixels", [RGB, GREY])
@pytest.mark.parametrize("kind", sorted(AROUND))
def test_every_chunk_of_a_png_is_kept(pixels: np.ndarray, kind: str) -> None:
    for before, after in (({kind: AROUND[kind]}, {}), ({}, {kind: AROUND[kind]})):
        data = with_chunks(saved(pixels.squeeze(), "PNG"), before, after)
        picture = read_picture(data, "x.png")
        assert picture.pixels is not None and np.array_equal(picture.pixels, pixels)
        again, suffix = decoded(picture).to_bytes()
        around = [[c for c in chunks(file) if c[0] != b"IDAT"] for file in (data, again)]
        assert suffix == ".png" and around[0] == around[1]
        order = [next(k for k, _ in chunks(file) if k != b"IHDR") == b"IDAT" for file in (data, again)]
        assert order[0] == order[1] == (not before)
        reread = read_picture(again, "x.png").pixels
        assert reread is not None and np.array_equal(reread, pixels)
        with pytest.raises(ImageError, match=rf"^\.tif: would lose what the \.png file held .*{kind}"):
            decoded(picture).to_bytes(".tif")


def test_chunks_of_a_png_with_transparency_are_kept() -> None:
    data = with_chunks(saved(natural(37, 53, 4), "PNG", compress_level=0), AROUND, {})
    picture = read_picture(data, "x.png")
    smaller, _ = best_file(picture)
    assert picture.pixels is not None and len(smaller) < len(data)
    again, _ = decoded(picture).to_bytes()
    assert [c for c in chunks(again) if c[0] != b"IDAT"] == [c for c in chunks(data) if c[0] != b"IDAT"]


def test_bytes_behind_the_end_of_a_png_are_kept() -> None:
    data = saved(RGB, "PNG") + b"a video" * 99
    picture = read_picture(data, "x.png")
    assert picture.pixels is not None and decoded(picture).to_bytes()[0].endswith(b"IEND\xaeB`\x82" + b"a video" * 99)
    with pytest.raises(ImageError, match="bytes behind its end"):
        decoded(picture).to_bytes(".webp")


def test_a_plain_png_has_no_frame() -> None:
    assert read_picture(saved(RGB, "PNG"), "x.png").metadata == {}
    with_profile = read_picture(saved(RGB, "PNG", icc_profile=ICC), "x.png")
    again, _ = decoded(with_profile).to_bytes(".tif")
    assert read_picture(again, "x.tif").portable() == {"icc": ICC}


@pytest.mark.parametrize("name", ["rgb.bmp", "grey.bmp", "rgb.ppm", "comment.ppm", "rgb.tif", "hand.tif", "rgb.tga"])
def test_files_that_hold_rows_come_back_byte_for_byte(name: str) -> None:
    for tail in (b"", b"and more behind it"):
        data = CODABLE[name] + tail
        picture = read_picture(data, name)
        if picture.pixels is None:  # bytes behind a PPM are more images
            assert name.endswith(".ppm") and tail
            continue
        assert decoded(picture).to_bytes() == (data, picture.suffix)
        assert decoded(picture).to_bytes(picture.suffix.upper())[0] == data


@pytest.mark.parametrize("resolution", [(300, 300), (72, 72)])
def test_tags_of_tiffs_are_kept_or_the_file_is(resolution: tuple[int, int]) -> None:
    for compression in (None, "tiff_lzw", "tiff_deflate"):
        data = saved(RGB, "TIFF", compression=compression, dpi=resolution, description="a field", artist="nobody")
        picture = read_picture(data, "x.tif")
        again, _ = picture.to_bytes() if picture.pixels is None else decoded(picture).to_bytes(".tif")
        tags = [image_tags(file) for file in (data, again)]
        assert tags[0] == tags[1] and {270, 315, 282, 283} <= set(tags[0])


def image_tags(file: bytes) -> dict[int, object]:
    from vdvae_codec.images.files import _own_tags, opened

    with opened(file, "x.tif") as image:
        return _own_tags(image)


@pytest.mark.parametrize("options", [
    {"comment": b"a comment"}, {"dpi": (300, 300)}, {"extra": b"\xff\xed\0\x10Photoshop 3.0\0"},
], ids=str)  # fmt: skip
def test_jpegs_that_hold_more_are_kept_as_files(options: dict[str, object]) -> None:
    plain = saved(RGB, "JPEG", quality=99)
    assert read_picture(plain, "x.jpg").pixels is not None
    more = saved(RGB, "JPEG", quality=99, **options)
    assert more != plain
    for data in (more, plain + b"a video"):
        picture = read_picture(data, "x.jpg")
        assert picture.pixels is None and picture.to_bytes() == (data, ".jpg")


def test_damaged_pngs_are_kept_as_they_are_and_it_is_said() -> None:
    data = saved(RGB, "PNG")
    wrong = {"IEND": data[:-4] + b"abcd", "no end chunk": data[:-12], "IDAT": data[:-16] + b"abcd" + data[-12:]}
    for what, damaged in wrong.items():
        picture = read_picture(damaged, "x.png")
        assert picture.pixels is None and picture.to_bytes()[0] == damaged
        assert what in picture.notice and "kept as it is" in picture.notice and best_file(picture)[0] == damaged


def test_frames_of_other_pixels_are_refused() -> None:
    frames = [read_picture(CODABLE[name], name).metadata["frame"] for name in ("rgb.bmp", "grey.bmp", "rgb.tif")]
    rng = np.random.default_rng(0)
    for frame in frames:
        for pixels in (RGB[:-1], RGB[:, 1:], GREY[:20]):
            with pytest.raises(ImageError, match="does not fit"):
                framed(frame, pixels)
        for _ in range(300):
            damaged = np.frombuffer(frame, np.uint8).copy()
            damaged[rng.integers(0, 40, 2)] = rng.integers(0, 256, 2)
            for pixels in (RGB, GREY):
                try:
                    assert len(framed(damaged.tobytes(), pixels)) < 2 * len(frame) + 2 * pixels.size + 1000
                except ImageError as error:
                    assert "\n" not in str(error)
