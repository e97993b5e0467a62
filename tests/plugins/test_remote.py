"""Archives at URLs, read in parts from a real server; every byte that it sends is counted."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import vdvae_codec
from vdvae_codec.codec.store import Released
from vdvae_codec.errors import VdvaeCodecError
from vdvae_codec.format.vdz import Reader
from vdvae_codec.plugins.dataset import VdzDataset

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
START, END = 1 + 9, 16  # bytes: one to try, the file's start; its end


class RangeHandler(BaseHTTPRequestHandler):
    """Serves one file, whole or in ranges; ``sent`` are the numbers of bytes."""

    data = b""
    sent: list[int]

    def do_HEAD(self) -> None:
        self.respond(200, b"")

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        body = self.data[int(wanted[1]) : int(wanted[2]) + 1] if wanted else self.data
        self.sent.append(len(body))
        self.respond(206 if wanted else 200, body)

    def respond(self, status: int, body: bytes) -> None:
        self.send_response(status if self.path == "/a.vdz" else 404)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body) or len(self.data)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def vdz(photo: np.ndarray, tiny_model: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight segments of five images."""
    path = tmp_path_factory.mktemp("remote") / "a.vdz"
    images = [(f"{n // 10}/{n % 10}", photo[n : n + 32, 2 * n : 2 * n + 32]) for n in range(40)]
    vdvae_codec.write_archive(images, path, model=tiny_model, segment=5, fallback=False, verify=False)
    return path


@pytest.fixture
def server(vdz: Path) -> Iterator[tuple[str, list[int]]]:
    """URL of the archive, and the numbers of bytes that were sent."""
    handler = type("Handler", (RangeHandler,), {"data": vdz.read_bytes(), "sent": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/a.vdz", handler.sent  # type: ignore[attr-defined]
        running.shutdown()


def parts(vdz: Path, segment: int) -> tuple[int, int]:
    """Bytes of the index with all that opening reads, and of one segment."""
    with vdz.open("rb") as file:
        starts = [found.start for found in Reader(file).segments]
    data = vdz.read_bytes()
    index = int.from_bytes(data[-12:-8], "little")
    return START + index + END, [*starts, len(data) - END - index][segment + 1] - starts[segment]


def test_one_image_reads_its_segment(
    server: tuple[str, list[int]], vdz: Path, photo: np.ndarray, tiny_model: Released
) -> None:
    url, sent = server
    opening, segment = parts(vdz, 4)
    with vdvae_codec.open_archive(url, model=tiny_model) as archive:
        assert len(archive) == 40 and sum(sent) == opening
        assert np.array_equal(archive[22].pixels, photo[22:54, 44:76])  # type: ignore[arg-type]
        assert sum(sent) == opening + segment < len(vdz.read_bytes()) / 5
        archive[24]
        assert sum(sent) == opening + segment


def test_a_name_costs_the_table_of_its_segment(
    server: tuple[str, list[int]], vdz: Path, photo: np.ndarray, tiny_model: Released
) -> None:
    url, sent = server
    opening, segment = parts(vdz, 4)
    with vdvae_codec.open_archive(url, model=tiny_model) as archive:
        assert np.array_equal(archive["2/2"].pixels, photo[22:54, 44:76])  # type: ignore[arg-type]
        assert opening + segment < sum(sent) < opening + 1.2 * segment
        with pytest.raises(KeyError):
            archive["no such image"]


def test_a_dataset_of_a_url(server: tuple[str, list[int]], photo: np.ndarray, tiny_folder: Path) -> None:
    url, _ = server
    dataset = VdzDataset(url, model=str(tiny_folder))
    for batch, n in zip(DataLoader(dataset, sampler=[39, 3], num_workers=1), (39, 3), strict=True):
        assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), photo[n : n + 32, 2 * n : 2 * n + 32])


def test_what_cannot_be_read(server: tuple[str, list[int]], vdz: Path) -> None:
    url, _ = server
    with pytest.raises(FileNotFoundError):
        vdvae_codec.open_archive(url + "x")
    with pytest.raises(VdvaeCodecError, match=r"^nosuch://a\.vdz: cannot be read in parts \(Protocol not known"):
        vdvae_codec.open_archive("nosuch://a.vdz")
    handler = partial(QuietHandler, directory=str(vdz.parent))  # which gives whole files only
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as whole:
        threading.Thread(target=whole.serve_forever, daemon=True).start()
        with pytest.raises(VdvaeCodecError, match=r"^http://\S+: cannot be read in parts .*range") as error:
            vdvae_codec.open_archive(f"http://127.0.0.1:{whole.server_port}/a.vdz")
        assert "\n" not in str(error.value)
        whole.shutdown()


def test_a_missing_package_is_named() -> None:
    with pytest.raises(VdvaeCodecError, match=r"^oci://a/b: .*ocifs.*; pip install 'vdvae-codec\[remote\]'"):
        vdvae_codec.open_archive("oci://a/b")
