"""Hostile inputs by the thousand: each must give one of the package's errors, in one line, or the right pixels.

    python -m tests.fuzz --seconds 3600 --seed 1

Input n of a seed is always the same. What went wrong is printed, and its input kept as a file.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from vdvae_codec.codec import pipeline, restore
from vdvae_codec.codec.archive import Archive, decompress, write
from vdvae_codec.codec.inspect import info
from vdvae_codec.errors import ImageError, VdvaeCodecError
from vdvae_codec.format.vdz import is_safe
from vdvae_codec.images.files import file_pixels, picture_of, read_picture, write_image

from . import hostile

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MEMORY = 1 << 30  # bytes beyond those of the process at the start
SECONDS = 20.0  # of one input, of the process's own time
LARGE = 1 << 24  # sub-pixels of an image
DECODED = {"mnist": 0.01, "photo-2": 0.001, "": 1.0}  # share of accepted inputs that are decoded, by their seed's model
VDZ: dict[str, Callable[[hostile.Rng, bytes], bytes]] = {
    "vdz bytes": hostile.edited, "vdz table": hostile.table, "vdz payload": hostile.payload,
    "vdz index": hostile.index, "vdz segments": hostile.shuffled,
}  # fmt: skip
IMAGES = {"image bytes": hostile.edited, "image chunks": hostile.chunks}
SPLICES = ("vdz splice", "image splice")


@dataclass(frozen=True)
class Seed:
    """A real file, by the suffix of its name."""

    data: bytes
    suffix: str
    model: str = ""  # of a .vdz: what has to run to decode it


@dataclass
class Seeds:
    """What is changed; and the pixels of all segments that are coded, which are all that may be decoded."""

    vdz: list[Seed] = field(default_factory=list)
    images: list[Seed] = field(default_factory=list)
    pixels: set[bytes] = field(default_factory=lambda: {b""})


class Wrong(Exception):
    """An input that was taken for what it is not."""


def natural(height: int, width: int, channels: int) -> np.ndarray:
    """Waves and noise, (H, W, C) uint8."""
    y, x, c = np.ogrid[:height, :width, :channels]
    noise = np.random.default_rng(height).normal(0, 3, (height, width, channels))
    return (128 + 60 * np.sin(x / 5 + c) + 50 * np.cos(y / 4 - c) + noise).clip(0, 255).astype(np.uint8)


def saved(array: np.ndarray, format: str, **options: object) -> bytes:
    out = BytesIO()
    Image.fromarray(array).save(out, format, **options)
    return out.getvalue()


def wide(height: int, width: int, channels: int) -> np.ndarray:
    """The same with noise below, (H, W, C) uint16."""
    low = np.random.default_rng(width).integers(0, 256, (height, width, channels), np.uint16)
    return natural(height, width, channels).astype(np.uint16) << 8 | low


def inks(height: int, width: int) -> bytes:
    """A TIFF of C, M, Y, K."""
    out = BytesIO()
    Image.fromarray(natural(height, width, 3)).convert("CMYK").save(out, "TIFF")
    return out.getvalue()


def image_files() -> Iterator[Seed]:
    rgb, grey = natural(12, 17, 3), natural(12, 17, 1)[..., 0]
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "with more than pixels")
    yield Seed(saved(rgb, "PNG", pnginfo=text, dpi=(300, 300)), ".png")
    yield Seed(saved(grey, "PNG"), ".png")
    yield Seed(saved(np.dstack([rgb, grey]), "PNG"), ".png")
    yield Seed(saved(rgb, "TIFF", compression="tiff_adobe_deflate"), ".tif")
    for deep in (wide(12, 17, 3), wide(12, 17, 1)):
        yield Seed(write_image(deep, {}, ".png"), ".png")
    yield Seed(saved(wide(12, 17, 1)[..., 0], "TIFF"), ".tif")
    yield Seed(b"P6 17 12 65535\n" + wide(12, 17, 3).astype(">u2").tobytes(), ".ppm")
    yield Seed(inks(12, 17), ".tif")
    for format, suffix in (("BMP", ".bmp"), ("TIFF", ".tif"), ("TGA", ".tga"), ("PPM", ".ppm"), ("JPEG", ".jpg")):
        yield Seed(saved(rgb, format), suffix)
        yield Seed(saved(grey, format), suffix)
    yield Seed(saved(rgb, "WEBP", lossless=True), ".webp")
    yield Seed(saved(rgb, "WEBP"), ".webp")
    yield Seed(saved(grey, "GIF"), ".gif")


def digits() -> Iterator[bytes]:
    """Small .vdz of the mnist model: one image, and an archive of coded and of stored ones in two segments."""
    images = [natural(28, 28, 1), natural(28, 28, 1)[::-1], natural(9, 40, 1)]
    stored = read_picture(saved(natural(8, 8, 3), "WEBP"), "stored.webp")
    files = [read_picture(saved(image[..., 0], "BMP"), f"{n}.bmp", 10**9) for n, image in enumerate(images)]
    exact = read_picture(saved(images[0][..., 0], "PNG"), "exact.png", exact_file=True)
    others = [picture_of(wide(28, 28, 1)[:20], "deep"), read_picture(inks(9, 12), "inks.tif"), exact]
    for pictures in ([picture_of(images[0])], [*files, stored], others):
        file = BytesIO()
        write(pictures, file, "mnist", "cpu", segment=2, fallback=False)
        yield file.getvalue()


@functools.cache
def seeds() -> Seeds:
    found = Seeds(images=list(image_files()))
    for path in sorted(GOLDEN.glob("*.vdz")):
        found.vdz.append(Seed(path.read_bytes(), ".vdz", "" if path.stem == "stored" else "photo-2"))
        for segment in Archive(BytesIO(path.read_bytes())).segments():
            names = [entry.name for entry in segment.entries if entry.coded]
            images = (path.with_suffix("") / name if name else path.with_suffix(".png") for name in names)
            found.pixels.add(joined([file_pixels(image.read_bytes()) for image in images]))
    for data in digits():
        found.vdz.append(Seed(data, ".vdz", "mnist"))
        segments = Archive(BytesIO(data)).segments()
        found.pixels |= {joined(pipeline.decode_pixels(segment, device="cpu")) for segment in segments}
    return found


def joined(images: list[np.ndarray]) -> bytes:
    return b"".join(image.tobytes() for image in images)


def made(seeds: Seeds, rng: hostile.Rng) -> tuple[str, Seed]:
    """One hostile input, and of which kind it is."""
    kinds = (*VDZ, *IMAGES, *SPLICES)
    kind = kinds[rng.integers(len(kinds))]
    files = seeds.images if kind.startswith("image") else seeds.vdz
    seed, other = (files[n] for n in rng.integers(len(files), size=2))
    if kind in SPLICES:
        return kind, replace(seed, data=hostile.spliced(rng, seed.data, other.data))
    return kind, replace(seed, data=(VDZ | IMAGES)[kind](rng, seed.data))


def check(own: Seed, seeds: Seeds, rng: hostile.Rng) -> str:
    """What became of an input: "refused", or how far it was taken. Raises Wrong, or whatever is no typed error."""
    try:
        return check_vdz(own, seeds, rng) if own.suffix == ".vdz" else check_image(own, bool(rng.integers(2)))
    except VdvaeCodecError as error:
        check_line(str(error))
        return "refused"


def check_line(line: str) -> None:
    if not line or re.search(r"[\x00-\x1f\x7f-\x9f]", line):
        raise Wrong(f"an error that is not one line for people: {line!r}")


def check_vdz(own: Seed, seeds: Seeds, rng: hostile.Rng) -> str:
    info(BytesIO(own.data))
    archive = Archive(BytesIO(own.data), device="cpu")
    if not archive.names:
        raise Wrong("an archive of no images")
    if rng.random() >= DECODED[own.model]:
        return "listed"
    for segment in archive.segments():
        if joined(pipeline.decode_pixels(segment, device="cpu")) not in seeds.pixels:
            raise Wrong("other pixels than those that were coded")
    for name, _, _ in restore.files(archive, lost=check_line):
        if not is_safe(name):
            raise Wrong(f"a file named {name!r}")
    return "restored"


def check_image(own: Seed, exact: bool) -> str:
    """What is coded as pixels and metadata must give the pixels back, and with ``exact`` the very bytes."""
    try:
        picture = read_picture(own.data, f"x{own.suffix}", exact_file=exact)
    except MemoryError:  # of pixels that Pillow's limit allows, and ``bounded_memory`` does not
        return "too large"
    if picture.pixels is None:
        return "kept as a file"
    if picture.pixels.size > LARGE:
        return "coded"  # to write it again may take more memory than there is
    try:
        again, suffix = replace(picture, data=b"", suffix=".png").to_bytes()
        back = read_picture(again, f"x{suffix}").pixels
    except ImageError as error:
        raise Wrong(f"a picture that cannot be written again: {error}") from error
    if back is None or not np.array_equal(back, picture.pixels) or (exact and again != own.data):
        raise Wrong("other pixels or bytes than the file's")
    return "coded"





@contextlib.contextmanager
def bounded_memory(bytes_more: int) -> Iterator[None]:
    """No more address space than now and ``bytes_more``, where the system can say so."""
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + bytes_more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass
class Found:
    """Inputs by kind and outcome, and what went wrong."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[tuple[str, Seed]] = field(default_factory=list)  # why, and the input
    slowest_seconds: float = 0.0


def fuzz(seconds: float, seed: int, count: int | None = None, told: Callable[[str], None] = print) -> Found:
    """Tries inputs until the time is over, or ``count`` of them are done."""
    found, own_seeds, end = Found(), seeds(), time.monotonic() + seconds
    decompress((GOLDEN / "rgb.vdz").read_bytes(), device="cpu")  # what it keeps from now on is no input's
    with bounded_memory(MEMORY), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged files
        for n in itertools.islice(itertools.count(), count):
            if time.monotonic() > end:
                break
            attempt(n, np.random.default_rng((seed, n)), own_seeds, found, told)
    return found


def attempt(n: int, rng: hostile.Rng, seeds: Seeds, found: Found, told: Callable[[str], None]) -> None:
    kind, own = made(seeds, rng)
    begun = time.process_time()
    try:
        outcome, why = check(own, seeds, rng), ""
    except Exception:
        outcome, why = "WRONG", traceback.format_exc()
    taken = time.process_time() - begun
    if taken > SECONDS:
        outcome, why = "WRONG", f"it took {taken:.0f} seconds"
    found.slowest_seconds = max(found.slowest_seconds, taken)
    found.counts[kind, outcome] += 1
    if why:
        found.wrong.append((why, own))
        told(f"input {n} ({kind}): {why}")
