"""A forbidden region, and whether a way, a path or a frame stays out of it.

All that is known of a region is what it says of single positions, so ways are looked at in steps
that are small against the range of each axis.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from micjax.instruments.base import Axis, Frame, LimitError, Over, Path, Sweeps, points_of

Forbidden = Callable[[Mapping[str, float]], bool]
Position = dict[str, float]

FINE = 256  # places that make up the range of an axis
ORDERS = 24  # in which the axes of a move are tried one after the other


class Region:
    """Where a position of all axes must not be.

    **Arguments:**

    - `forbidden`: tells of a position whether it is.
    - `axes`: whose ranges say how closely a way is looked at.
    """

    def __init__(self, forbidden: Forbidden, axes: Mapping[str, Axis]):
        self._forbidden = forbidden
        self._fine = {n: (a.hi - a.lo) / FINE for n, a in axes.items()}

    def way(self, now: Position, target: Mapping[str, float]) -> list[Position]:
        """The axes of a move one after the other, in the first order whose way is free.

        **Raises:** `LimitError` where there is none. Who stands in the region may leave it.
        """
        moving = [n for n, v in target.items() if now[n] != v]
        refused = None
        for order in itertools.islice(itertools.permutations(moving), ORDERS):
            try:
                self._free(now, [(n, target[n]) for n in order])
            except LimitError as error:
                refused = refused or error
            else:
                return [{n: target[n]} for n in order] or [dict(target)]
        raise refused

    def measured(self, now: Position, over: Over, swept: Sweeps) -> None:
        """All that a measurement goes over or sweeps, and the way to where it begins.

        **Raises:** `LimitError` where a part of it is forbidden.
        """
        if over is None:
            places = [(now["x"], now["y"])] if {"x", "y"} <= set(now) else [None]
        else:
            self._reaches(now, over)
            places = self._area(over) if isinstance(over, Frame) else self._line(points_of(over))
        position, sweeps = dict(now), list(self._swept(swept))
        for place in places:
            if place is not None:
                position["x"], position["y"] = place
            for values in sweeps:
                position.update(values)
                self._check(position)

    def _free(self, now: Position, legs: list[tuple[str, float]]) -> None:
        position, inside = dict(now), bool(self._forbidden(now))
        for name, end in legs:
            for value in self._between(name, position[name], end):
                position[name] = value
                if self._forbidden(position):
                    if not inside:
                        raise self._refusal(position)
                else:
                    inside = False
        if inside:
            raise self._refusal(position)

    def _between(self, name: str, start: float, end: float) -> list[float]:
        """Values along an axis, the last one included and the first one not."""
        count = self._count(abs(end - start), self._fine[name])
        return np.linspace(start, end, count + 1)[1:].tolist()

    def _count(self, length: float, fine: float) -> int:
        return max(1, math.ceil(length / fine)) if fine > 0.0 else FINE

    def _reaches(self, now: Position, over: Frame | Path) -> None:
        """From where it stands to where a scan begins, in whichever order x and y move."""
        starts = points_of(over)[:1]
        if isinstance(
            over, Frame
        ):  # at its first or last row, at the edge or the centre of a pixel
            starts = np.concatenate([over.corners()[:, 0], over.edges()[[0, 2]]])
        for x, y in starts.tolist():
            self._free(now, [("x", x), ("y", y)])
            self._free(now, [("y", y), ("x", x)])
            line = self._line(np.array([[now["x"], now["y"]], [x, y]]))
            for position in ({**now, "x": u, "y": v} for u, v in line):
                self._check(position)

    def _line(self, points: np.ndarray) -> Iterator[list[float]]:
        """Along straight lines from point to point."""
        fine = np.array([self._fine["x"], self._fine["y"]])
        yield from points[:1].tolist()
        for start, end in itertools.pairwise(points):
            count = max(map(self._count, np.abs(end - start), fine))
            yield from np.linspace(start, end, count + 1)[1:].tolist()

    def _area(self, frame: Frame) -> list[list[float]]:
        """All of a frame to the edges of its pixels, their centres among it: how it is scanned,
        and by which way it comes back, is the instrument's."""
        fine = min(self._fine["x"], self._fine["y"])
        along, down = (
            np.union1d(np.linspace(0.0, 1.0, self._count(size, fine) + 1), (np.arange(n) + 0.5) / n)
            for size, n in zip(frame.size, frame.shape[::-1], strict=True)
        )
        first, right, up, _ = frame.edges()
        places = first + along[None, :, None] * (right - first) + down[:, None, None] * (up - first)
        return places.reshape(-1, 2).tolist()

    def _swept(self, swept: Sweeps) -> Iterator[Position]:
        """Values of the swept axes, all of them at once."""
        if not swept:
            return iter([{}])
        count = max(2, round(FINE ** (1.0 / len(swept))) + 1)
        lines = [np.linspace(lo, hi, count).tolist() for lo, hi in swept.values()]
        return (dict(zip(swept, values, strict=True)) for values in itertools.product(*lines))

    def _check(self, position: Position) -> None:
        if self._forbidden(position):
            raise self._refusal(position)

    def _refusal(self, position: Position) -> LimitError:
        where = ", ".join(f"{n} = {v:g}" for n, v in position.items())
        return LimitError(f"{where} is in the forbidden region")
