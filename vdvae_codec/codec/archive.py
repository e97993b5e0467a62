"""The files: images in, a .vdz out, and back, a segment at a time. A single image is an archive of one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn, Self

import numpy as np
from tqdm import tqdm

from vdvae_codec import DEFAULT_MODEL, transforms
from vdvae_codec.codec import pipeline
from vdvae_codec.codec.helpers import ALONE, Helpers
from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.errors import FormatError, ImageError, ModelError, VdvaeCodecError
from vdvae_codec.exact.arithmetic import eager
from vdvae_codec.format.vdz import MAX_IMAGES, Entry, Found, Reader, Segment, Writer, is_safe
from vdvae_codec.format.whole import replacing
from vdvae_codec.images.classical import is_jpeg
from vdvae_codec.images.files import NOT_EXACT, Picture, all_files, is_image_name, picture_of, read_picture

SEGMENT = 10_000  # images of a segment
SEGMENT_PIXELS = 2**26  # of a segment: bounds the memory
SEGMENT_METADATA = 2**23  # bytes: far below what a table may hold
SHOWN = 5  # names in a notice
Image = bytes | np.ndarray  # of a file, or pixels (H, W, 1 or 3) uint8


@dataclass(frozen=True)
class Report:
    """What a .vdz holds and costs, in bytes unless the name says bits."""

    model: str
    images: int
    stored: int  # of them, as files: what no model can code, and what WebP, PNG or the file itself hold in less
    segments: int
    transforms: tuple[str, ...]  # that were applied to any of them, such as "PhotoCD" and "chroma"
    dims: int  # sub-pixels of the images that a model can code
    input_bytes: int
    output_bytes: int  # the whole file
    word_bytes: int  # of the entropy coder
    stored_bytes: int
    table_bytes: int  # names, times, shapes, metadata, side information, groups and checksums
    initial_bits: float  # of the words: what the first latents cost because nothing could be borrowed yet
    other_bytes: int  # of the stored files, those of images that no model can code
    grown: int  # JPEGs whose coding takes more than they did ...
    grown_from_bytes: int  # ... in all
    grown_to_bytes: int

    @property
    def bpd(self) -> float:
        """Bits of the file per sub-pixel, less the files of images that no model can code; 0 if there are none."""
        return 8 * (self.output_bytes - self.other_bytes) / self.dims if self.dims else 0.0


@eager
def compress(
    image: Image, *, model: str | Released = DEFAULT_MODEL, device: str = "auto", fallback: bool = True,
    verify: bool = True, exact_file: bool = False,
) -> bytes:
    """Compresses an image file's bytes, or pixels (H, W[, 1 to 4]) uint8, to a .vdz's bytes.

    ``fallback`` stores a WebP, a PNG or the file itself where that is smaller than what the model gives. ``verify``
    decodes the result and compares every pixel. ``exact_file`` keeps the very bytes of a file: where they cannot be
    made of its pixels, the file. Raises ImageError, ModelError, or VdvaeCodecError if the comparison fails.
    """
    file = BytesIO()
    write([as_picture("", image, exact_file)], file, model, device, fallback=fallback, verify=verify)
    return file.getvalue()


@eager
def decompress(
    vdz: bytes, *, suffix: str | None = None, model: str | Released | None = None, device: str = "auto"
) -> bytes:
    """Decodes the .vdz of one image to an image file's bytes, of the lossless format of ``suffix``: by default that of
    the file that it was, or PNG where that was none.

    A file that was stored as it was comes back as it was. ``model`` is needed where the file names one that is not
    shipped. Raises FormatError, ModelError or ImageError; of these DeflateError where the very bytes of a PNG were
    promised (``exact_file``) and this machine's zlib gives others: ``decompress_array`` has the pixels.
    """
    return _only_picture(vdz, model, device).to_bytes(suffix)[0]


@eager
def decompress_array(vdz: bytes, *, model: str | Released | None = None, device: str = "auto") -> np.ndarray:
    """Decodes the .vdz of one image to its pixels (H, W, C): uint8, with C = 1 to 4, for all that a model coded.

    What that is for a file that was stored as it was, see ``Picture.to_array``. Raises FormatError, ModelError or
    ImageError.
    """
    return _only_picture(vdz, model, device).to_array()


def _only_picture(vdz: bytes, model: str | Released | None, device: str) -> Picture:
    with Archive(BytesIO(vdz), model, device) as archive:
        if len(archive) != 1:
            raise FormatError(f"this .vdz holds {len(archive)} images: open_archive reads them")
        return archive[0]


@eager
def write_archive(
    images: Iterable[tuple[str, Image]], path: str | Path, *, model: str | Released = DEFAULT_MODEL,
    device: str = "auto", segment: int = SEGMENT, fallback: bool = True, verify: bool = True,
    exact_file: bool = False,
) -> Report:
    """Writes images, in their order and by their names (paths with slashes), to one .vdz at ``path``.

    Takes one segment of at most ``segment`` images at a time; a damaged byte costs its segment and no more. The file
    appears when it is complete. ``exact_file`` is that of ``compress``. Raises ImageError, ModelError or
    VdvaeCodecError.
    """
    pictures = (named(as_picture(name, image, exact_file)) for name, image in images)
    with replacing(Path(path)) as file:
        return write(pictures, file, model, device, segment=segment, fallback=fallback, verify=verify)


@eager
def open_archive(
    path: str | Path | BinaryIO, *, model: str | Released | None = None, device: str = "auto"
) -> Archive:
    """Opens a .vdz, of one or of many images, for reading: a path, a binary file that can seek, or a URL.

    A URL is what fsspec reads (http://, s3://, ...; the extra ``remote`` brings http). Only the bytes that are needed
    are asked for: of an archive the index, and the segments of the images. Raises FormatError if it is no .vdz,
    OSError, and VdvaeCodecError for a URL that cannot be read in parts.
    """
    if isinstance(path, str) and "://" in path:
        path = remote_file(path)
    file = Path(path).open("rb") if isinstance(path, (str, Path)) else path  # noqa: SIM115
    return Archive(file, model, device)


def remote_file(url: str) -> BinaryIO:
    """A file of fsspec that reads as many bytes as it is asked for, and no more. Raises VdvaeCodecError or OSError."""
    try:
        system, path = importlib.import_module("fsspec.core").url_to_fs(url)
        file: BinaryIO = system.open(path, "rb", cache_type="none")
        file.seek(-1, 2)
        file.read(1)  # a server that gives whole files only refuses that
    except ImportError as error:
        line = f"{url}: {error}; pip install 'vdvae-codec[remote]' brings what http needs"
        raise VdvaeCodecError(line) from error
    except ValueError as error:
        raise VdvaeCodecError(f"{url}: cannot be read in parts ({error})") from error
    return file


def as_picture(name: str, image: Image, exact_file: bool = False) -> Picture:
    """Raises ImageError."""
    if isinstance(image, np.ndarray):
        return picture_of(image, name)
    return read_picture(image, name, exact_file=exact_file)


def named(picture: Picture) -> Picture:
    """A picture that an archive can hold; raises ImageError."""
    if not is_safe(picture.name):
        raise ImageError(f"{picture.name!r}: a name that an archive cannot hold")
    return picture


class Folder:
    """The images below a folder, in the order of their paths, each read when its turn comes; ``failed`` gets a line for
    each that cannot be read, and ``notice`` what should be known of others. ``others`` are the names of files that are
    no images. ``exact_file`` is that of ``compress``: how many images are kept as they are for it is said at the end.
    """

    def __init__(
        self, folder: Path, failed: Callable[[str], None], notice: Callable[[str], None] = lambda line: None, *,
        exact_file: bool = False,
    ):
        self._folder, self._failed, self._notice, self._exact_file = folder, failed, notice, exact_file
        files = all_files(folder, failed)
        self._paths = [path for path in files if is_image_name(path)]
        self.size = sum(path.stat().st_size for path in self._paths if path.is_file())  # bytes
        self.others = [path.relative_to(folder).as_posix() for path in files if not is_image_name(path)]

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Picture]:
        kept = list[str]()
        for path in self._paths:
            name = path.relative_to(self._folder).as_posix()
            try:
                modified = int(path.stat().st_mtime)
                picture = named(read_picture(path.read_bytes(), name, modified, exact_file=self._exact_file))
                if picture.notice == NOT_EXACT:
                    kept.append(name)
                elif picture.notice:
                    self._notice(f"{path}: {picture.notice}")
                yield picture
            except OSError as error:
                self._failed(f"{path}: {error.strerror}")
            except ImageError as error:
                self._failed(str(error))
        if kept:
            names = ", ".join(kept[:SHOWN]) + ", ..." * (len(kept) > SHOWN)
            self._notice(f"{self._folder}: {len(kept)} images, each {NOT_EXACT}: {names}")


def write(
    pictures: Iterable[Picture], file: BinaryIO, model: str | Released = DEFAULT_MODEL, device: str = "auto", *,
    segment: int = SEGMENT, fallback: bool = True, verify: bool = True, total: int | None = None,
    helpers: Helpers = ALONE, onto: Archive | None = None,
) -> Report:
    """Codes pictures, in their order, into a .vdz, and says what they cost.

    Takes one segment at a time from ``pictures``, of whose ``total`` bytes a share is shown. ``verify`` decodes each
    segment and compares every pixel and file before the next one. ``onto``: an archive whose segments come first, as
    they are. Raises ImageError, ModelError or VdvaeCodecError, and FormatError if ``onto`` is damaged.
    """
    released, writer = load_released(model, device), Writer(file)
    costs = Costs(released.name)
    for old in onto.segments() if onto else ():
        writer.add(old)
        costs.old_bytes += len(old.payload)
    with bytes_bar("compressing", total, bool(total)) as bar:
        for part in segments_of(distinct(pictures, onto.names if onto else ()), segment):
            encoded = pipeline.encode(part, released, fallback=fallback, helpers=helpers)
            if verify:
                pipeline.verify(part, encoded.segment, released, helpers)
            writer.add(encoded.segment)
            costs.add(part, encoded)
            bar.update(sum(len(picture.data) for picture in part))
    if not costs.images:
        raise ImageError("no images: nothing was written")
    writer.finish()
    return costs.report(writer.table_bytes)


def bytes_bar(what: str, total: int | None, wanted: bool) -> tqdm[NoReturn]:
    """A bar of ``total`` bytes and the time left, on a terminal's stderr only; below another one it does not stay."""
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=None, disable=None if wanted else True)


class Costs:
    """Sums over the segments of a .vdz."""

    def __init__(self, model: str):
        self.model, self.names = model, dict[str, None]()
        self.images = self.stored = self.segments = self.dims = 0
        self.input_bytes = self.word_bytes = self.stored_bytes = self.other_bytes = 0
        self.old_bytes = self.grown = self.grown_from_bytes = self.grown_to_bytes = 0
        self.initial_bits = 0.0

    def add(self, pictures: list[Picture], encoded: pipeline.Encoded) -> None:
        segment = encoded.segment
        self.segments += 1
        self.images += len(pictures)
        self.word_bytes += segment.word_bytes
        self.initial_bits += encoded.initial_bits
        for picture, entry, size in zip(pictures, segment.entries, encoded.sizes):
            if is_jpeg(picture.data) and size > len(picture.data):
                self.grown += 1
                self.grown_from_bytes += len(picture.data)
                self.grown_to_bytes += size
            self.stored += not entry.coded
            self.stored_bytes += entry.payload_bytes
            self.names |= dict.fromkeys(transforms.names(entry.side_info))
            if picture.pixels is None or not pipeline.by_model(picture):
                self.other_bytes += entry.file_bytes
            else:
                self.dims += picture.pixels.size
            self.input_bytes += len(picture.data) or (0 if picture.pixels is None else picture.pixels.nbytes)

    def report(self, table_bytes: int) -> Report:
        output_bytes = table_bytes + self.word_bytes + self.stored_bytes + self.old_bytes
        return Report(
            self.model, self.images, self.stored, self.segments, tuple(self.names), self.dims, self.input_bytes,
            output_bytes, self.word_bytes, self.stored_bytes, table_bytes, self.initial_bits, self.other_bytes,
            self.grown, self.grown_from_bytes, self.grown_to_bytes,
        )


def distinct(pictures: Iterable[Picture], taken: Iterable[str] = ()) -> Iterator[Picture]:
    """The same pictures; raises ImageError for a second one of one name, and of a name that is ``taken``."""
    names = set(taken)
    for picture in pictures:
        if picture.name in names:
            raise ImageError(f"{picture.name!r}: two images of one name")
        names.add(picture.name)
        yield picture


def segments_of(pictures: Iterable[Picture], count: int) -> Iterator[list[Picture]]:
    """Up to ``count`` pictures at a time, and no more pixels and metadata than SEGMENT_PIXELS and SEGMENT_METADATA
    unless one alone has them."""
    part: list[Picture] = []
    sums = np.zeros(2, np.int64)
    for picture in pictures:
        sizes = (picture.width * picture.height, 4 * len(picture.name) + sum(map(len, picture.metadata.values())))
        full = len(part) == min(count, MAX_IMAGES) or bool((sums + sizes > (SEGMENT_PIXELS, SEGMENT_METADATA)).any())
        if part and full:
            yield part
            part, sums = [], np.zeros(2, np.int64)
        part.append(picture)
        sums += sizes
    if part:
        yield part


class Archive:
    """A .vdz that is read: a sequence of pictures, decoded a segment at a time when they are asked for.

    ``archive[n]`` reads and decodes the segment of one image (the last one is kept), ``archive[name]`` reads tables
    until the name is found, iteration takes all segments in turn; ``len`` reads the index alone, ``names`` and
    ``entries`` the tables. Raises FormatError where a segment is damaged; ``pictures`` goes on behind it.
    """

    def __init__(
        self, file: BinaryIO, model: str | Released | None = None, device: str = "auto", helpers: Helpers = ALONE
    ):
        self._file, self._model, self._device, self._helpers = file, model, device, helpers
        try:
            self.reader = Reader(file)
        except BaseException:
            file.close()
            raise
        self._kept: tuple[int, list[Picture]] = (-1, [])
        self._names: dict[int, list[str]] = {}  # of the images of segments whose tables were read

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def entries(self) -> list[Entry]:
        """What the tables say of each image: read anew, since their metadata may be large."""
        return [entry for found in self.reader.whole() for entry in self.reader.entries(found)]

    def _names_in(self, segment: int) -> list[str]:
        if segment not in self._names:
            self._names[segment] = [entry.name for entry in self.reader.entries(self.reader.segments[segment])]
        return self._names[segment]

    @property
    def names(self) -> list[str]:
        """Of all images, in their order; a single image may have an empty one."""
        return [name for segment in range(len(self.reader.whole())) for name in self._names_in(segment)]

    def __len__(self) -> int:
        return self.reader.starts[-1]

    def __iter__(self) -> Iterator[Picture]:
        return (self[n] for n in range(len(self)))

    @eager
    def __getitem__(self, key: int | str) -> Picture:
        segment, place = self._named(key) if isinstance(key, str) else self.reader.place(key)
        if self._kept[0] != segment:
            self._kept = (segment, self.decode(self.reader.segments[segment]))
        return self._kept[1][place]

    def _named(self, name: str) -> tuple[int, int]:
        """Segment and place of an image; tables are read until it is found, the most likely one first."""
        likely = sorted(enumerate(self.reader.whole()), key=lambda pair: not pair[1].surrounds(name))
        for segment, _ in likely:
            if name in (names := self._names_in(segment)):
                return segment, names.index(name)
        raise KeyError(name)

    def decode(self, found: Found) -> list[Picture]:
        """The images of one of ``reader.segments``. Raises FormatError or ModelError."""
        return pipeline.decode(self.reader.segment(found), self._model, self._device, self._helpers)

    def segments(self) -> Iterator[Segment]:
        """All segments as they lie in the file. Raises FormatError."""
        return (self.reader.segment(found) for found in self.reader.whole())

    def pictures(
        self, only: Callable[[str], bool] = lambda name: True, *, lost: Callable[[str], None]
    ) -> Iterator[Picture]:
        """The images whose names ``only`` takes, in order; segments without such are not decoded.

        A damaged segment does not end it: ``lost`` gets a line that says which images it costs, and why. Raises
        ModelError.
        """
        if not self.reader.complete:
            lost(self.reader.trouble)
        with bytes_bar("decompressing", self.reader.size, len(self.reader.segments) > 1) as bar:
            for found in self.reader.segments:
                bar.update(found.start - bar.n)
                try:
                    entries = self.reader.entries(found)
                    found = replace(found, count=len(entries), first=entries[0].name, last=entries[-1].name)
                    pictures = self.decode(found) if any(only(entry.name) for entry in entries) else []
                except ModelError:
                    raise
                except VdvaeCodecError as error:
                    lost(f"{found} lost: {error}")
                    continue
                yield from (picture for picture in pictures if only(picture.name))
            bar.update(self.reader.size - bar.n)
