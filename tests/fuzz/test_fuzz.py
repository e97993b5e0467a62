"""Some thousand hostile inputs, the same each time; ``python -m tests.fuzz`` tries more."""

from __future__ import annotations

import numpy as np
import pytest

from . import harness, hostile

EACH = {"refused", "listed", "restored", "kept as a file", "coded"}  # outcomes


def test_hostile_inputs() -> None:
    found = harness.fuzz(seconds=35, seed=0, count=20_000)
    assert not found.wrong, found.wrong[0][0]
    assert {outcome for _, outcome in found.counts} == EACH
    assert {kind for kind, _ in found.counts} == {*harness.VDZ, *harness.IMAGES, *harness.SPLICES}


def test_wrong_pixels_would_be_found() -> None:
    """The harness tells, of a file whose pixels nobody coded."""
    seeds = harness.seeds()
    own = next(seed for seed in seeds.vdz if seed.model == "mnist")
    always = np.random.default_rng(0)
    harness.DECODED[own.model], kept = 1.0, harness.DECODED[own.model]
    try:
        assert harness.check(own, seeds, always) == "restored"
        with pytest.raises(harness.Wrong, match="other pixels"):
            harness.check(own, harness.Seeds(), always)
    finally:
        harness.DECODED[own.model] = kept


@pytest.mark.parametrize("n", range(7))
def test_parts_of_a_file_make_it_again(n: int) -> None:
    """What is edited is what a reader reads: unedited it gives the same images."""
    data = harness.seeds().vdz[n].data
    rng = np.random.default_rng(0)
    whole = [hostile.sealed(rng, *segment) for segment in hostile.segments_of(data)]
    index = hostile.index_of(data)
    again = hostile.joined(rng, whole, hostile.resized(index, [len(s) for s in whole]) if index else b"")
    assert harness.Archive(harness.BytesIO(again)).entries == harness.Archive(harness.BytesIO(data)).entries
