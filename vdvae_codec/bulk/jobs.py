"""What is done to one piece of the inputs, wherever that is: the same piece gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from vdvae_codec import DEFAULT_MODEL, __version__
from vdvae_codec.bulk.inputs import Images, Item, Segments, Source, archive_sources, image_sources
from vdvae_codec.bulk.places import joined, read, write
from vdvae_codec.codec import pipeline
from vdvae_codec.codec.archive import SEGMENT, named, open_archive, segments_of
from vdvae_codec.codec.restore import files
from vdvae_codec.codec.store import load_released
from vdvae_codec.errors import ImageError, VdvaeCodecError
from vdvae_codec.exact.arithmetic import eager
from vdvae_codec.format.vdz import Reader, Writer
from vdvae_codec.images.files import Picture, read_picture
from vdvae_codec.images.names import is_single
from vdvae_codec.scoring.calibration import FILE
from vdvae_codec.scoring.score import find_calibration, score_images
from vdvae_codec.scoring.scores import row

Row = dict[str, Any]  # a line of the manifest: an image, or with "error" what could not be had


class Job(Protocol):
    """Frozen, and can be pickled."""

    @property
    def suffix(self) -> str:
        """Of the files that it makes; empty where the manifest's rows are all it makes."""

    def sources(self, inputs: Iterable[str | Path]) -> list[Source]:
        """Raises VdvaeCodecError and OSError."""

    def identity(self) -> str:
        """What the results depend on beside the inputs. Raises ModelError."""

    def make(self, piece: Any) -> tuple[bytes, list[Row]]:
        """The file that a piece becomes (empty for none) and its rows. Raises VdvaeCodecError and OSError."""


@dataclass(frozen=True)
class Compress:
    """Images to archives; arguments as of ``vdvae_codec.write_archive``."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    segment: int = SEGMENT
    fallback: bool = True
    verify: bool = True
    exact_file: bool = False
    suffix = ".vdz"

    def sources(self, inputs: Iterable[str | Path]) -> list[Source]:
        return image_sources(inputs)

    def identity(self) -> str:
        digest = load_released(self.model, self.device).digest.hex()
        return f"compress {digest} {self.segment} {self.fallback} {self.exact_file}"

    def make(self, piece: Images) -> tuple[bytes, list[Row]]:
        """Rows have name, segment, input_bytes, bytes (its share of the archive's), bpd where it has pixels, crc32 of
        its file, offset (where its segment begins); or name and error."""
        released = load_released(self.model, self.device)
        file, rows, failed = BytesIO(), list[Row](), list[Row]()
        writer = Writer(file)
        for n, part in enumerate(segments_of(self.pictures(piece, failed), self.segment)):
            encoded = pipeline.encode(part, released, fallback=self.fallback)
            if self.verify:
                pipeline.verify(part, encoded.segment, released)
            writer.add(encoded.segment)
            rows += [image_row(picture, size, n) for picture, size in zip(part, encoded.sizes)]
        if not rows:
            return b"", failed
        writer.finish()
        starts = [found.start for found in Reader(file).segments]
        return file.getvalue(), [own | {"offset": starts[own["segment"]]} for own in rows] + failed

    def pictures(self, piece: Images, failed: list[Row]) -> Iterator[Picture]:
        """Those that can be read; a row is ``failed`` for each other one."""
        names = set[str]()
        for item in piece.items():
            try:
                picture = named(read_picture(item.read(), item.name, item.modified, exact_file=self.exact_file))
                if item.name in names:
                    raise ImageError(f"{item.name}: two images of one name")
            except (OSError, ImageError) as error:
                failed.append({"name": item.name, "error": str(error)})
                continue
            names.add(item.name)
            yield picture


def image_row(picture: Picture, size: int, segment: int) -> Row:
    made = {"name": picture.name, "segment": segment, "input_bytes": len(picture.data), "bytes": size}
    rate = {} if picture.pixels is None else {"bpd": 8 * size / picture.pixels.size}
    return made | rate | {"crc32": zlib.crc32(picture.data)}


@dataclass(frozen=True)
class Decompress:
    """Archives to tar shards of image files, with the names and times that the images had."""

    model: str | None = None
    device: str = "auto"
    suffix = ".tar"

    def sources(self, inputs: Iterable[str | Path]) -> list[Source]:
        return archive_sources(inputs)

    def identity(self) -> str:
        return "decompress"

    def make(self, piece: Segments) -> tuple[bytes, list[Row]]:
        """Rows have name, bytes and crc32 of a file; or the error that says what a damaged segment costs."""
        file, rows, lost = BytesIO(), list[Row](), list[str]()
        with (
            open_archive(piece.url, model=self.model, device=self.device) as archive,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            if is_single(archive.reader):
                raise VdvaeCodecError(f"{piece.url}: holds a single image without a name, and is no archive")
            archive.reader.segments = archive.reader.segments[piece.start : piece.stop]
            for name, image, modified in files(archive, lost=lost.append):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(image), modified or 0
                tar.addfile(member, BytesIO(image))
                rows.append({"name": name, "bytes": len(image), "crc32": zlib.crc32(image)})
        return file.getvalue() if rows else b"", rows + [{"error": line} for line in lost]


@dataclass(frozen=True)
class Score:
    """Scores of images; arguments as of ``vdvae_codec.score``."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    samples: int = 1
    suffix = ""

    def sources(self, inputs: Iterable[str | Path]) -> list[Source]:
        return image_sources(inputs)

    def identity(self) -> str:
        released = load_released(self.model, self.device)
        calibration = released.folder / FILE
        reference = zlib.crc32(calibration.read_bytes()) if calibration.exists() else ""
        return f"score {released.digest.hex()} {self.samples} {reference}"

    def make(self, piece: Images) -> tuple[bytes, list[Row]]:
        """Rows are those of ``vdvae_codec.score``; or have name and error."""
        released, failed = load_released(self.model, self.device), list[Row]()
        calibration = find_calibration(released, self.samples)
        found = score_images(
            released.model, readable(piece.items(), failed), self.samples,
            lambda line: failed.append({"error": line}),
        )
        return b"", [row(scored, released.config, calibration) for scored in found] + failed


def readable(items: Iterable[Item], failed: list[Row]) -> Iterator[tuple[str, bytes]]:
    for item in items:
        try:
            yield item.name, item.read()
        except (OSError, ImageError) as error:
            failed.append({"name": item.name, "error": str(error)})


@dataclass(frozen=True)
class Done:
    """A piece that is done: the head of its manifest."""

    name: str
    key: str  # of what it was made of
    images: int
    input_bytes: int
    output_bytes: int
    sha256: str  # of the file; empty for none
    errors: tuple[str, ...]
    kept: bool = False  # done by an earlier run


@eager
def do(piece: Source, name: str, job: Job, identity: str, output: str) -> Done:
    """Makes the file ``name`` of a piece below ``output``, and behind it its manifest, unless both are there and whole.

    ``identity`` is ``job.identity()``. The manifest is JSON lines: a head, then a row for each image. Raises
    VdvaeCodecError and OSError, which leave no file that looks done.
    """
    key = hashlib.sha256(json.dumps([__version__, identity, name, asdict(piece)]).encode()).hexdigest()
    place = joined(output, name)
    done = finished(place, key, job.suffix)
    if done is not None:
        return done
    data, rows = job.make(piece)
    if data:
        write(place + job.suffix, data)
    errors = tuple(own["error"] for own in rows if "error" in own)
    sha256 = hashlib.sha256(data).hexdigest() if data else ""
    done = Done(name, key, len(rows) - len(errors), piece.size, len(data), sha256, errors)
    part = {"part": name + job.suffix}
    lines = [json.dumps(line) for line in (asdict(done), *(part | own for own in rows))]
    write(place + ".jsonl", "".join(f"{line}\n" for line in lines).encode())
    return done


def finished(place: str, key: str, suffix: str) -> Done | None:
    """What an earlier run made of the same, if it is whole."""
    try:
        head = json.loads(read(place + ".jsonl").partition(b"\n")[0])
        done = Done(**head | {"errors": tuple(head["errors"]), "kept": True})
        whole = not done.sha256 or hashlib.sha256(read(place + suffix)).hexdigest() == done.sha256
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return done if whole and done.key == key else None
