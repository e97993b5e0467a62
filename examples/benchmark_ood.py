"""Which scores find the images that do not belong: AUROC, AUPRC and FPR at 80 % TPR of all of them, pair by pair.

    python examples/benchmark_ood.py prepare sets --mnist mnist.npz --fashion fashion_mnist.npz --cifar cifar10.npz \\
        --photos photos/val_full --more photos/train
    vdvae-codec train --model fashion-mnist --data sets/mnist-train.npy --out run
    vdvae-codec export run --data sets/mnist-train.npy -o models/mnist
    vdvae-codec calibrate models/mnist sets/mnist-held
    python examples/benchmark_ood.py pairs --cifar cifar10.npz --mnist mnist.npz --fashion fashion_mnist.npz \\
        --photos photos/val_full --more photos/train --textures textures/ --screenshots screenshots/
    python examples/benchmark_ood.py folder sets photos/train --textures textures/ --screenshots screenshots/
    python examples/benchmark_ood.py binarise binary.npy --fashion fashion_mnist.npz
    vdvae-codec train --model examples/binarised.toml --data binary.npy --out binarised
    python examples/benchmark_ood.py binarised binarised --mnist mnist.npz --fashion fashion_mnist.npz

``prepare`` writes training images and held-out ones to calibrate on; training and calibration are the commands that
users have. Too few photographs are held out, so crops of half of the photographs in the training set are among them;
the other half are the photographs of ``pairs`` and ``folder``. The graphics among CID22's images are left out.
``pairs`` scores test images (that belong) and others. ``folder`` hides 20 screenshots, 20 textures and 20 spoilt
photographs among 1,000 photographs, runs ``vdvae-codec score`` on the folder, and counts what it flags.
``binarise`` and ``binarised`` are the setting of Havtorn 2021 (arXiv 2102.08248) for LLR^{>k}: a model of images whose
pixels are white with the probability of their level.
Screenshots: PNG files, such as those of Debian's gimp-help-en; textures: image files and GIMP's patterns, such as
Debian's gimp-data and scikit-image's. Needs ``pip install vdvae-codec[bench]``.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from benchmark_photos import hardware, markdown, run_codec
from PIL import Image, ImageFilter
from scipy.io import loadmat
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from tqdm import tqdm

from vdvae_codec import DEFAULT_MODEL
from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.images.files import image_files, read_rgb
from vdvae_codec.scoring.calibration import Calibration
from vdvae_codec.scoring.score import find_calibration, score_arrays
from vdvae_codec.scoring.scores import Scored, row
from vdvae_codec.training.checkpoint import latest_checkpoint, load_float
from vdvae_codec.training.data import split_by_image
from vdvae_codec.training.sources import open_images

Images = list[np.ndarray]  # each (H, W, 1 or 3) uint8
SIDE = 256  # of photographs and what is set against them
HELD = 5000  # of MNIST's and FashionMNIST's 60,000 training images


def file_option(name: str, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(f"--{name}", type=click.Path(path_type=Path, exists=True), help=what)


# --- images ---


def array(npz: Path, key: str) -> np.ndarray:
    """(N, H, W, 1 or 3) uint8"""
    with np.load(npz) as arrays:
        images: np.ndarray = arrays[key]
    return images if images.ndim == 4 else images[..., None]


def some(images: np.ndarray, count: int) -> Images:
    """``count`` of them, evenly spaced."""
    return list(images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)])


def pattern(path: Path) -> np.ndarray:
    """GIMP's .pat: (H, W, 3) uint8."""
    data = path.read_bytes()
    start, _, width, height, channels = struct.unpack_from(">5I", data)
    pixels = np.frombuffer(data, np.uint8, height * width * channels, start).reshape(height, width, channels)
    return pixels[..., :3] if channels >= 3 else pixels[..., :1].repeat(3, 2)


def pictures(folder: Path) -> Images:
    patterns = [pattern(path) for path in sorted(folder.rglob("*.pat"))]
    return patterns + [read_rgb(path) for path in image_files(folder)]


def crops(sources: Sequence[np.ndarray], side: int, count: int, seed: int = 0) -> Images:
    """``count`` random squares of sources that are large enough, in turn; sources that are not are tiled."""
    rng, out = np.random.default_rng(seed), Images()
    for n in range(count):
        source = sources[n % len(sources)]
        if min(source.shape[:2]) < side:
            times = [-(-side // s) for s in source.shape[:2]]
            source = np.tile(source, (*times, 1))
        y, x = (int(rng.integers(s - side + 1)) for s in source.shape[:2])
        out.append(np.ascontiguousarray(source[y : y + side, x : x + side]))
    return out


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """The largest square at the centre, as (side, side, 3)."""
    edge = min(image.shape[:2])
    y, x = ((s - edge) // 2 for s in image.shape[:2])
    square = Image.fromarray(image[y : y + edge, x : x + edge])
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def noise(like: Images) -> Images:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, image.shape).astype(np.uint8) for image in like]


def constant(like: Images) -> Images:
    rng = np.random.default_rng(0)
    return [np.full(image.shape, rng.integers(0, 256, image.shape[2]), np.uint8) for image in like]


def blurred(images: Images, radius: float) -> Images:
    blur = ImageFilter.GaussianBlur(radius)
    return [np.asarray(Image.fromarray(image).filter(blur)) for image in images]


def exchanged(images: Images) -> Images:
    """Green and blue exchanged."""
    return [np.ascontiguousarray(image[..., [0, 2, 1]]) for image in images]


def halves(folder: Path) -> tuple[list[Path], list[Path]]:
    """The crops of every second photograph of the training set, and those of the others; CID22 has graphics as well."""
    paths = [path for path in image_files(folder) if not path.name.startswith("cid22")]
    sources = sorted({source_of(path) for path in paths})
    chosen = set(sources[::2])
    return [p for p in paths if source_of(p) in chosen], [p for p in paths if source_of(p) not in chosen]


def source_of(path: Path) -> str:
    """The photograph that a crop was cut from: drew_17ecaa2b_y0x512 is of drew_17ecaa2b."""
    return "_".join(path.stem.split("_")[:2])


def scales(photograph: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rectangles of a photograph as they are or half as large, of sides from 96 to 512."""
    height, width = (s // 2 for s in photograph.shape[:2])
    half = np.asarray(Image.fromarray(photograph).resize((width, height), Image.Resampling.BOX))
    for _ in range(count):
        source = half if rng.random() < 0.3 else photograph
        height, width = (min(int(s), int(np.exp(rng.uniform(np.log(96), np.log(512))))) for s in source.shape[:2])
        y, x = (int(rng.integers(s - t + 1)) for s, t in zip(source.shape[:2], (height, width)))
        yield source[y : y + height, x : x + width]


# --- scores ---


def score(released: Released, images: Images, what: str) -> list[Scored]:
    found: list[Scored] = []
    for start in tqdm(range(0, len(images), 100), desc=f"{released.name}: {what}", disable=None, leave=False):
        part = images[start : start + 100]
        found += score_arrays(released.model, [what] * len(part), part, llr=True)
    return found


def columns(released: Released, scored: Sequence[Scored], calibration: Calibration) -> dict[str, np.ndarray]:
    """Each score (n,) by name; high is surprising."""
    rows = [row(s, released.config, calibration) for s in scored]
    out = {"ood (default)": "ood", "bpd": "bpd", "typicality": "typicality", "bpd - complexity": "corrected_bpd"}
    found = {name: np.array([r[key] for r in rows]) for name, key in out.items()}
    for k in range(len(rows[0]["llr_bpd"])):
        found[f"LLR>{k + 1}"] = np.array([r["llr_bpd"][k] for r in rows])
    return found


def rates(belongs: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """AUROC, AUPRC and FPR at 80 % TPR of finding ``others``."""
    truth, scores = np.repeat([0, 1], [len(belongs), len(others)]), np.concatenate([belongs, others])
    false, true, _ = roc_curve(truth, scores)
    return roc_auc_score(truth, scores), average_precision_score(truth, scores), float(false[true >= 0.8][0])


def table(released: Released, calibration: Calibration, belong: tuple[str, Images], sets: dict[str, Images]) -> None:
    ours = columns(released, score(released, belong[1], belong[0]), calibration)
    rows = []
    for name, images in sets.items():
        theirs = columns(released, score(released, images, name), calibration)
        found = (rates(ours[key], theirs[key]) for key in ours)
        rows.append((f"{name} ({len(images)})", *(" / ".join(f"{v:.3f}" for v in three) for three in found)))
    print(f"\n`{released.name}`, calibrated on {len(calibration.bpd)} images; {len(belong[1])} {belong[0]} against\n")
    print(markdown(("AUROC / AUPRC / FPR80", *ours), rows), flush=True)


# --- commands ---


@click.group()
def main() -> None:
    pass


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@file_option("mnist", "mnist.npz")
@file_option("fashion", "fashion_mnist.npz")
@file_option("cifar", "cifar10.npz")
@file_option("photos", "Folder of whole photographs that no model was trained on.")
@file_option("more", "Folder of the crops that the default model was trained on.")
def prepare(
    out: Path, mnist: Path | None, fashion: Path | None, cifar: Path | None, photos: Path | None, more: Path | None
) -> None:
    """Training images of MNIST and FashionMNIST, and held-out images of all sets to calibrate on."""
    out.mkdir(parents=True, exist_ok=True)

    def write(name: str, images: Iterator[np.ndarray] | Images) -> None:
        folder = out / f"{name}-held"
        folder.mkdir(exist_ok=True)
        for n, image in enumerate(images):
            Image.fromarray(image.squeeze()).save(folder / f"{n:05}.png")
        print(f"{folder}: {n + 1} images")

    for name, npz in (("mnist", mnist), ("fashion-mnist", fashion)):
        if npz is not None:
            images = array(npz, "x_train")
            np.save(out / f"{name}-train.npy", images[:-HELD])
            write(name, some(images[-HELD:], 2000))
    if cifar is not None:  # training images, of which cifar10-causal has seen all
        with tempfile.TemporaryDirectory() as cache:
            training = open_images(Path(f"{cifar}:x_train"), 32, Path(cache))
            _, held = split_by_image(training, 0.05, 0)
            write("cifar10", [held[n] for n in range(0, len(held.names), 2)])
    if photos is not None and more is not None:
        rng = np.random.default_rng(0)
        sources = [(path, 8) for path in image_files(photos)] + [(path, 3) for path in halves(more)[0]]
        write("photo", (part for path, count in sources for part in scales(read_rgb(path), count, rng)))


@main.command()
@click.option("--limit", default=1000, show_default=True, help="Images of each set.")
@file_option("mnist", "mnist.npz")
@file_option("fashion", "fashion_mnist.npz")
@file_option("cifar", "cifar10.npz")
@file_option("svhn", "test_32x32.mat, as it is published.")
@file_option("photos", "Folder of whole photographs that no model was trained on.")
@file_option("more", "Folder of the crops that the default model was trained on.")
@file_option("textures", "Folder.")
@file_option("screenshots", "Folder.")
def pairs(
    limit: int, mnist: Path | None, fashion: Path | None, cifar: Path | None, svhn: Path | None,
    photos: Path | None, more: Path | None, textures: Path | None, screenshots: Path | None,
) -> None:
    """Tables for every model whose sets are given."""
    print(hardware())

    def shipped(name: str) -> tuple[Released, Calibration]:
        released = load_released(name)
        calibration = find_calibration(released, 1)
        if calibration is None:
            raise click.ClickException(f"{name} has no calibration")
        return released, calibration

    if mnist is not None and fashion is not None:
        digits, clothes = (some(array(npz, "x_test"), limit) for npz in (mnist, fashion))
        table(*shipped("fashion-mnist"), ("FashionMNIST test", clothes), {
            "MNIST": digits, "mirrored top to bottom": [c[::-1].copy() for c in clothes], "noise": noise(digits),
            "constant": constant(digits),
        })
        table(*shipped("mnist"), ("MNIST test", digits), {
            "FashionMNIST": clothes, "mirrored top to bottom": [d[::-1].copy() for d in digits],
            "noise": noise(digits), "constant": constant(digits),
        })
    if cifar is not None:
        images = some(array(cifar, "x_test"), limit)
        others: dict[str, Images] = {}
        if svhn is not None:
            others["SVHN"] = some(loadmat(svhn)["X"].transpose(3, 0, 1, 2), limit)
        if photos is not None:
            sources = [read_rgb(path) for path in image_files(photos)]
            others["photographs, 32x32"] = [shrunk(image, 32) for image in crops(sources, 512, limit)]
        if textures is not None:
            others["textures, 32x32"] = crops([t for t in pictures(textures) if min(t.shape[:2]) >= 32], 32, limit)
        for name, npz in (("digits in RGB", mnist), ("clothes in RGB", fashion)):
            if npz is not None:
                grey = some(array(npz, "x_test"), limit)
                others[name] = [np.pad(image, ((2, 2), (2, 2), (0, 0))).repeat(3, 2) for image in grey]
        others |= {
            "noise": noise(images), "constant": constant(images), "blurred (sigma 1)": blurred(images, 1),
            "green and blue exchanged": exchanged(images),
            "mirrored top to bottom": [image[::-1].copy() for image in images],
        }
        for model in ("cifar10-causal", "cifar10-vdvae"):
            table(*shipped(model), ("CIFAR-10 test", images), others)
    if more is not None:
        images = crops([read_rgb(path) for path in halves(more)[1]], SIDE, limit // 2)
        others = {}
        if screenshots is not None:
            others["screenshots"] = crops(large(pictures(screenshots)), SIDE, limit // 2)
        if textures is not None:
            others["textures"] = crops(pictures(textures), SIDE, limit // 2)
        others |= {
            "noise": noise(images[:100]), "blurred (sigma 2)": blurred(images, 2),
            "green and blue exchanged": exchanged(images),
        }
        table(*shipped(DEFAULT_MODEL), ("crops of photographs", images), others)


def large(images: Images) -> Images:
    """Those whose sides are at least half of SIDE."""
    return [image for image in images if min(image.shape[:2]) >= SIDE // 2]


@main.command()
@click.argument("sets", type=click.Path(path_type=Path))
@click.argument("photos", type=click.Path(path_type=Path, exists=True))
@file_option("textures", "Folder.")
@file_option("screenshots", "Folder.")
@click.option("--fpr", default=0.01, show_default=True)
@click.option("--count", default=1000, show_default=True, help="Photographs.")
def folder(sets: Path, photos: Path, textures: Path, screenshots: Path, fpr: float, count: int) -> None:
    """1,000 photographs with 60 images that do not belong: precision and recall of the flags."""
    sources = [read_rgb(path) for path in tqdm(halves(photos)[1], desc="reading", disable=None)]
    good = crops(sources, SIDE, count)
    victims = crops(sources, SIDE, 20, seed=1)
    hidden = {
        "screenshot": crops(large(pictures(screenshots)), SIDE, 20),
        "texture": crops(pictures(textures), SIDE, 20),
        "noisy": [
            (v + np.random.default_rng(0).normal(0, 25, v.shape)).round().clip(0, 255).astype(np.uint8)
            for v in victims[:7]
        ],
        "blurred": blurred(victims[7:14], 2), "exchanged": exchanged(victims[14:]),
    }
    out = sets / "mixed"
    out.mkdir(parents=True, exist_ok=True)
    for name, images in {"photo": good, **hidden}.items():
        for n, image in enumerate(images):
            Image.fromarray(image).save(out / f"{name}-{n:04}.png")
    rows = run_codec("score", [out], "--fpr", str(fpr)).rows
    (sets / "mixed.json").write_text(json.dumps(rows))
    flagged = Counter(Path(r["name"]).name.split("-")[0] for r in rows if r["flagged"])
    total = sum(flagged.values())
    found = total - flagged["photo"]
    counts = [(name, len(images), flagged[name]) for name, images in {"photo": good, **hidden}.items()]
    print(f"{hardware()}\n")
    print(markdown(("images", "number", "flagged"), counts))
    wanted = sum(map(len, hidden.values()))
    print(f"\nprecision {found / max(1, total):.3f}, recall {found / wanted:.3f} at --fpr {fpr}")


def draw_binary(images: np.ndarray, seed: int) -> np.ndarray:
    """Images (N, 28, 28, 1), each pixel 255 with the probability of its level and else 0, in frames (N, 32, 32, 1)."""
    white = np.random.default_rng(seed).random(images.shape) < images / 255
    return np.pad(white * np.uint8(255), ((0, 0), (2, 2), (2, 2), (0, 0)))


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@file_option("fashion", "fashion_mnist.npz")
def binarise(out: Path, fashion: Path) -> None:
    """FashionMNIST's training images, each drawn twice."""
    training = array(fashion, "x_train")[:-HELD]
    np.save(out, np.concatenate([draw_binary(training, seed) for seed in range(2)]))


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--limit", default=1000, show_default=True, help="Images of each set.")
@file_option("mnist", "mnist.npz")
@file_option("fashion", "fashion_mnist.npz")
def binarised(run: Path, limit: int, mnist: Path, fashion: Path) -> None:
    """LLR^{>k} of a training on what ``binarise`` writes: clothes against digits, test images."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise click.ClickException(f"{run}: holds no checkpoint")
    model = load_float(checkpoint)[0].eval()
    clothes, digits = (
        score_arrays(model, [""] * limit, list(draw_binary(np.stack(some(array(npz, "x_test"), limit)), 0)), llr=True)
        for npz in (fashion, mnist)
    )
    rows = []
    for k in range(len(clothes[0].llr_bpd)):
        found = rates(*(np.array([s.llr_bpd[k] for s in scored]) for scored in (clothes, digits)))
        rows.append((f"LLR>{k + 1}", *(f"{value:.3f}" for value in found)))
    print(markdown(("", "AUROC", "AUPRC", "FPR80"), rows))


if __name__ == "__main__":
    main()
