import pytest

from vdvae_codec.codec.schedule import code_groups


def test_groups_grow_while_the_bits_last() -> None:
    coded: list[tuple[int, int]] = []

    def attempt(start: int, size: int, direct: bool) -> bool:
        """Every tile pays for three others."""
        assert direct == (start == 0)
        if start and 3 * start < size:
            return False
        coded.append((start, size))
        return True

    assert code_groups(100, lambda start: (100 - start, 16), attempt) == [1, 2, 4, 8, 16, 16, 16, 16, 16, 5]
    assert [start for start, _ in coded] == [0, 1, 3, 7, 15, 31, 47, 63, 79, 95]
    assert code_groups(1, lambda start: (1 - start, 16), attempt) == [1]
    assert code_groups(3, lambda start: (3 - start, 1), attempt) == [1, 1, 1]


def test_refused_groups_are_halved() -> None:
    tried: list[tuple[int, int]] = []

    def attempt(start: int, size: int, direct: bool) -> bool:
        tried.append((start, size))
        return size <= 3

    assert code_groups(20, lambda start: (20 - start, 16), attempt) == [1, *[2] * 9, 1]
    assert tried[:5] == [(0, 1), (1, 2), (3, 4), (3, 2), (5, 2)]
    refused = [(start, size) for start, size in tried if size > 3]
    assert refused == [(3, 4), (13, 4)]  # patience: not at each group


@pytest.mark.parametrize("needed", [2, 3, 4, 5, 50])
def test_a_first_group_that_pays_too_little_is_enlarged(needed: int) -> None:
    paid = 0

    def attempt(start: int, size: int, direct: bool) -> bool:
        nonlocal paid
        assert size <= 4
        paid = 0 if start == 0 else paid
        paid += size * direct
        return direct or paid >= needed

    sizes = code_groups(11, lambda start: (11 - start, 4), attempt)
    assert sum(sizes) == 11
    assert paid == {2: 2, 3: 4, 4: 4, 5: 8, 50: 11}[needed]


def test_groups_hold_tiles_of_one_shape() -> None:
    ends = [1, 2, 9]
    coded: list[tuple[int, int, bool]] = []

    def room(start: int) -> tuple[int, int]:
        return min(e for e in ends if e > start) - start, 4

    def attempt(start: int, size: int, direct: bool) -> bool:
        """The first three tiles pay for nothing."""
        if start == 0:
            coded.clear()
        if not direct and sum(s for _, s, d in coded if d) < 4:
            return False
        coded.append((start, size, direct))
        return True

    assert code_groups(9, room, attempt) == [1, 1, 2, 2, 2, 1]
    assert coded == [(0, 1, True), (1, 1, True), (2, 2, True), (4, 2, False), (6, 2, False), (8, 1, False)]
