"""A lossless image codec: a very deep hierarchical VAE and bits-back coding.

    vdz = vdvae_codec.compress(Path("photo.png").read_bytes())
    png = vdvae_codec.decompress(vdz)

The names below are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdvae_codec.codec.archive import compress, decompress, decompress_array, open_archive, write_archive
    from vdvae_codec.codec.store import load_released as load_model
    from vdvae_codec.scoring.score import score

__version__ = "0.1.0"
__all__ = [
    "DEFAULT_MODEL", "compress", "decompress", "decompress_array", "load_model", "open_archive", "score",
    "write_archive",
]

DEFAULT_MODEL = "photo-2"

_PLACES = {
    "compress": "codec.archive.compress", "decompress": "codec.archive.decompress",
    "decompress_array": "codec.archive.decompress_array",
    "open_archive": "codec.archive.open_archive", "write_archive": "codec.archive.write_archive",
    "load_model": "codec.store.load_released", "score": "scoring.score.score",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
