"""How tiles are grouped: the first pays for the next ones, and those for more (HiLLoC, arXiv 1912.09953, section 3)."""

from __future__ import annotations

from collections.abc import Callable

MIN_BITS = 64  # bits that must be left on the stack when a group has borrowed
PATIENCE = 4  # groups after a refusal before one is larger


def code_groups(
    total: int, room: Callable[[int], tuple[int, int]], attempt: Callable[[int, int, bool], bool]
) -> list[int]:
    """Codes tiles 0..total-1 in growing groups and returns their sizes.

    ``room(start)`` says how many tiles of the same shape there are from ``start`` on, and how many make the largest
    group. ``attempt(start, size, direct)`` codes the tiles from ``start`` or returns False, having changed nothing, if
    the bits to borrow are not there; the group is then halved. The first tile is coded directly: it borrows nothing
    and is never refused. Where even one tile is refused (in flat images, whose pixels pay for nothing), all begins anew
    with twice as many tiles coded directly.
    """
    sizes: list[int] = []
    start, size, first, wait = 0, 1, 1, 0
    while start < total:
        same, largest = room(start)
        direct = start < first
        size = min(first - start if direct else size, largest, same)
        if attempt(start, size, direct):
            sizes.append(size)
            start += size
            size, wait = (size, wait - 1) if wait else (2 * size, 0)
        elif size > 1:
            size //= 2
            wait = PATIENCE
        else:
            first *= 2
            sizes, start, size = [], 0, first
    return sizes
