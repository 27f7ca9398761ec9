"""What is learned from, what says when to stop, and what is only looked at once.

Neighbouring pixels, rotated copies and scans of one place are no independent examples: where they
lie on both sides of a split, its error says nothing. Sides are TRAIN, VALIDATION and TEST; NONE is
what lies too near to two of them.
"""

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int

from micjax.core.plain import scalar

NONE, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
SHARES = (0.6, 0.2, 0.2)


def by_block(
    shape: tuple[int, int],
    gap: int,
    shares: tuple[float, float, float] = SHARES,
    axis: int = 1,
) -> Int[np.ndarray, "y x"]:
    """The side of each pixel of an image: strips across `axis`, in the order of the sides.

    **Arguments:**

    - `gap`: pixels between two strips that are on no side; at least the edge of a patch, or patches
        of two sides overlap.
    - `shares`: of the pixels of each side.

    **Raises:** `ValueError` for shares that are not 1 together, and an image too small for them.
    """
    _check(shares)
    length = shape[axis]
    left = length - 2 * gap
    widths = [round(left * share) for share in shares[:2]]
    widths.append(left - sum(widths))
    if left < 3 or min(widths) < 1:
        raise ValueError(f"{length} pixels cannot be split in three with gaps of {gap} pixels")
    strip = np.full(length, NONE)
    begin = 0
    for side, width in enumerate(widths):
        strip[begin : begin + width] = side
        begin += width + gap
    return np.broadcast_to(np.expand_dims(strip, 1 - axis), shape).copy()


def by_group(
    groups: Sequence[Hashable] | np.ndarray,
    shares: tuple[float, float, float] = SHARES,
    seed: int = 0,
) -> Int[np.ndarray, "n"]:
    """The side of each example: those of one group (scan, composition) on the same.

    Which side that is follows from the group and the seed alone, so further examples change nothing
    for those that were there; shares hold on average.

    **Arguments:**

    - `groups`: of each example; of a composition the sorted elements.

    **Raises:** `ValueError` for shares that are not 1 together, and a side without a group.
    """
    _check(shares)
    ends = np.cumsum(shares)[:2]
    sides = np.array([np.searchsorted(ends, _share_of(g, seed), "right") for g in groups], int)
    for side, name in ((TRAIN, "learn from"), (VALIDATION, "stop by"), (TEST, "look at")):
        if shares[side] > 0.0 and not (sides == side).any():
            raise ValueError(
                f"{len(set(groups))} groups: with seed {seed} none is left to {name}; take more "
                "groups, or leave one of them out after the other (without_each)"
            )
    return sides


def without_each(groups: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
    """For each group: where an example is not of it. For few groups, each left out once.

    **Raises:** `ValueError` for a single group.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise ValueError(
            f"all examples are of the group {names[0]!r}: no split is possible that tells anything "
            "of others"
            if names
            else "there are no examples"
        )
    return {name: np.array([g != name for g in groups]) for name in names}


def _plain(group: Hashable) -> Hashable:
    """The same group, whether it comes out of an array or a list."""
    return tuple(_plain(g) for g in group) if isinstance(group, tuple) else scalar(group)


def _share_of(group: Hashable, seed: int) -> float:
    group = _plain(group)
    return int(hashlib.sha256(f"{seed} {group!r}".encode()).hexdigest()[:8], 16) / 2**32


def _check(shares: tuple[float, float, float]) -> None:
    if min(shares) < 0.0 or not np.isclose(sum(shares), 1.0):
        raise ValueError(f"shares = {shares}: not below 0, and 1 together, are needed")
