"""python -m tests.fuzz: as long as you like."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .harness import fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Tries hostile inputs.")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="Inputs at most.")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="Folder for inputs that went wrong.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = fuzz(options.seconds, options.seed, options.count)
    for n, (_, own) in enumerate(found.wrong):
        options.keep.mkdir(exist_ok=True)
        (options.keep / f"{options.seed}-{n}{own.suffix}").write_bytes(own.data)
    for (kind, outcome), count in sorted(found.counts.items()):
        print(f"{kind:>14} {outcome:<16} {count}")
    print(f"{found.counts.total()} inputs, {len(found.wrong)} wrong, the slowest took {found.slowest_seconds:.1f} s")
    return bool(found.wrong)


sys.exit(main())
