"""How tiles are grouped: the first pays for the next ones, and those for more (HiLLoC, arXiv 1912.09953, section 3)."""

from __future__ import annotations

from collections.abc import Callable

MIN_BITS = 64  # bits that must be left on the stack when a group has borrowed


def code_groups(total: int, largest: int, attempt: Callable[[int, int], bool]) -> list[int]:
    """Codes tiles 0..total-1 in growing groups and returns their sizes.

    ``attempt(start, size)`` codes the tiles from ``start`` or returns False, having changed nothing, if the bits to
    borrow are not there; the group is then halved. A group of one tile must never be refused.
    """
    sizes: list[int] = []
    start, size = 0, 1
    while start < total:
        size = min(size, total - start, largest)
        while not attempt(start, size):
            if size == 1:
                raise AssertionError("a single tile was refused")
            size //= 2
        sizes.append(size)
        start += size
        size *= 2
    return sizes
