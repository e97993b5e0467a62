"""Runs on a Ray cluster of two nodes, between buckets of an S3 server, by tasks whose processes may be killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vdvae-codec[ray]'")
psutil = pytest.importorskip("psutil")
s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

from ray.cluster_utils import Cluster as Nodes  # noqa: E402
from tars import crops, pixels_in, shard  # noqa: E402

from vdvae_codec.bulk.inputs import Limit  # noqa: E402
from vdvae_codec.bulk.jobs import Compress, Decompress, Score  # noqa: E402
from vdvae_codec.bulk.run import run  # noqa: E402
from vdvae_codec.images.files import read_picture  # noqa: E402
from vdvae_codec.plugins.ray import Cluster  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FEW = Limit(5, 2**20)
IMAGES = 24
PROGRAM = """
import sys
from vdvae_codec.bulk.inputs import Limit
from vdvae_codec.bulk.jobs import Compress
from vdvae_codec.bulk.run import run
from vdvae_codec.plugins.ray import Cluster
done = run(Compress(sys.argv[1], "cpu", fallback=False), sys.argv[2:3], sys.argv[3], part=Limit(5, 2**20),
           engine=Cluster())
print(done.kept, done.images, done.errors)
"""


@pytest.fixture(scope="module")
def bucket(photo: np.ndarray) -> Iterator[str]:
    """URL of a bucket with two shards in ``shards``, on a server of this test's."""
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)  # also for the processes of nodes that are started later
        system = s3fs.S3FileSystem()
        system.mkdir("pictures")
        for n in range(2):
            system.pipe_file(f"pictures/shards/s{n}.tar", shard(crops(photo, IMAGES // 2, IMAGES // 2 * n)))
        yield "s3://pictures"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def nodes(bucket: str) -> Iterator[Nodes]:
    """Two nodes of a core each."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    memory = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Nodes(initialize_head=True, head_node_args=memory)
    cluster.add_node(**{key: value for key, value in memory.items() if key != "include_dashboard"})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def compress(tiny_folder: Path) -> Compress:
    return Compress(str(tiny_folder), "cpu", fallback=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def plain(bucket: str, compress: Compress, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a loop without Ray makes."""
    folder = tmp_path_factory.mktemp("plain")
    run(compress, [f"{bucket}/shards"], folder, part=FEW)
    return contents(folder)


def test_any_number_of_workers_gives_the_same_bytes(
    nodes: Nodes, bucket: str, compress: Compress, plain: dict[str, bytes], tmp_path: Path
) -> None:
    for workers in (1, 2):
        out = tmp_path / str(workers)
        done = run(compress, [f"{bucket}/shards/*.tar"], out, part=FEW, engine=Cluster(workers))
        assert (done.images, done.parts, done.errors) == (IMAGES, 6, [])
        assert contents(out) == plain


def test_buckets_to_archives_and_back(
    nodes: Nodes, bucket: str, photo: np.ndarray, compress: Compress, tiny_folder: Path, plain: dict[str, bytes]
) -> None:
    run(compress, [f"{bucket}/shards"], f"{bucket}/archives", part=FEW, engine=Cluster())
    system = s3fs.S3FileSystem()
    system.invalidate_cache()
    names = [path.rpartition("/")[2] for path in system.ls("pictures/archives")]
    assert {name: system.cat_file(f"pictures/archives/{name}") for name in names} == plain
    run(Decompress(str(tiny_folder), "cpu"), [f"{bucket}/archives"], f"{bucket}/back", engine=Cluster())
    images = pixels_in(system.cat_file(path) for path in system.glob("pictures/back/*.tar"))
    originals = crops(photo, IMAGES)
    assert images.keys() == originals.keys()
    for name, data in originals.items():
        assert np.array_equal(images[name], read_picture(data, name).pixels)  # type: ignore[arg-type]


def test_scores_on_workers(nodes: Nodes, bucket: str, tiny_folder: Path, tmp_path: Path) -> None:
    done = run(Score(str(tiny_folder), "cpu"), [f"{bucket}/shards"], tmp_path, part=FEW, engine=Cluster())
    assert (done.images, done.errors) == (IMAGES, [])
    run(Score(str(tiny_folder), "cpu"), [f"{bucket}/shards"], tmp_path / "plain", part=FEW)
    assert (tmp_path / "manifest.jsonl").read_bytes() == (tmp_path / "plain/manifest.jsonl").read_bytes()


def workers_of(nodes: Nodes) -> list[int]:
    """Ids of the processes in which tasks of this cluster run now."""
    raylets = [p.process.pid for node in nodes.list_all_nodes() for p in node.all_processes["raylet"]]
    found = []
    for child in (child for pid in raylets for child in psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            if any(part.startswith("ray::on_worker") for part in child.cmdline()[:1]):  # none of one that just ended
                found.append(child.pid)
    return found


def test_a_killed_process_and_a_second_run(
    nodes: Nodes, bucket: str, compress: Compress, plain: dict[str, bytes], tmp_path: Path
) -> None:
    """A run that is killed is started again, and loses a worker in the middle."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, compress.model, f"{bucket}/shards", str(out)]

    def started() -> subprocess.Popen[str]:
        environment = os.environ | {"RAY_ADDRESS": nodes.address}
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with started() as first:
        while not list(out.glob("*.jsonl")) and first.poll() is None:
            time.sleep(0.01)
        first.kill()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    assert 0 < len(before) < 6
    with started() as second:
        while not (working := workers_of(nodes)) and second.poll() is None:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            os.kill(working[0], signal.SIGKILL)
        said, errors = second.communicate()
    kept = re.search(rf"^(\d) {IMAGES} \[\]$", said, re.MULTILINE)  # among what Ray tells of the retry
    assert second.returncode == 0 and kept is not None, (said, errors)
    assert len(before) <= int(kept[1]) < 6  # a part may have been finished while the first run died
    assert contents(out) == plain
    assert before == {path: path.stat().st_mtime_ns for path in before}
