"""The fits of a map, block by block."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.maps.blocks.block import (
    BlockFits,
    PartOf,
    Pursuit,
    Starts,
    starts_of,
)
from micjax.inference.maps.blocks.dealt import Workers, dealt, workers_elsewhere
from micjax.inference.maps.result import MapFit, from_neighbours
from micjax.inference.maps.rows import Given, maps, rows
from micjax.inference.maps.status import STATUS, UNUSABLE


class Fits:
    """The fits of a map, block by block: what is done is kept, whatever ends it.

    Arguments as of `fit_map`; `starts` may be a function of a block, `starts(problem, x, y)` with
    `y` `[pixel, *datum]`. `state` is all that is needed to go on elsewhere.
    """

    def __init__(
        self,
        problem: InverseProblem,
        x: Any,
        y: Any,
        starts: Given | Sequence[Given] | Starts | None = None,
        known: Given | None = None,
        how: Pursuit | None = None,
        workers: Workers | None = None,
    ):
        self.y = y = y if hasattr(y, "ndim") else np.asarray(y)
        self.workers = workers_elsewhere() if workers is None else workers
        self.how, self.round = how or Pursuit(), 0
        fitted = BlockFits.of(problem, x, self.how)
        self.map, self.problem = _map_shape(y, fitted.datum), problem
        elsewhere = None if self.workers is None else self.workers.count
        self.fitted = fitted.for_map(self.pixels, elsewhere)
        self.known = maps(problem, dict(known or {}), self.map, "known")
        self.starts = starts if callable(starts) else starts_of(problem, starts or {}, self.map)
        self.arrays: dict[str, np.ndarray] = {}
        self.done = np.zeros(-(-self.pixels // self.fitted.size), bool)
        if not self._read_there and "rate" in fitted.law.parameters:  # before anything is fitted
            below = sum(int((self._data(i) < 0).sum()) for i in range(len(self.done)))
            if below:
                raise ValueError(f"{below} negative counts: a Poisson law has none")

    @property
    def pixels(self) -> int:
        return math.prod(self.map)

    @property
    def fits(self) -> int:
        """How many there are, those that begin again counted."""
        return (1 + self.how.neighbours) * self.pixels

    def run(self) -> Iterator[int]:
        """Yields how many fits are done, after each block. Blocks that are done are passed by."""
        while True:
            for done in self._round():
                yield self.round * self.pixels + done
            if self.round == self.how.neighbours:
                return
            self._begin_again(from_neighbours(self.problem, self.result()))

    def result(self) -> MapFit:
        return MapFit.of_rows(self.arrays, self.map)

    def state(self) -> dict[str, np.ndarray]:
        """By name; the same arrays that go on being filled."""
        per_pixel = np.repeat(self.done, self.fitted.size)[: self.pixels]
        begun = self.starts[0] if self.round else {}
        now = {"done": per_pixel, "round": np.array(self.round)}
        return self.arrays | now | {f"start {n}": a for n, a in begun.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from there."""
        self.round = int(state["round"])
        named = {
            n.partition(" ")[2]: np.array(a) for n, a in state.items() if n.startswith("start ")
        }
        self.starts = [named] if named else self.starts
        fields = {f.name for f in dataclasses.fields(MapFit)}
        self.arrays = {n: np.array(a) for n, a in state.items() if n.split(" ")[0] in fields}
        size = self.fitted.size
        parts = np.split(np.asarray(state["done"]), range(size, self.pixels, size))
        self.done = np.array([part.all() for part in parts])

    def _begin_again(self, starts: Given) -> None:
        self.round += 1
        self.starts = [maps(self.problem, starts, self.map, "starts")]
        self.done = np.zeros_like(self.done)

    def _round(self) -> Iterator[int]:
        """Yields how many pixels are done."""
        todo = np.flatnonzero(~self.done).tolist()
        alone = self.workers is None and not (self.done.any() or self.round)
        workers = self.workers or _threads()
        for block, fitted in dealt(self.fitted, todo, self._task, workers, alone):
            self._keep(block, fitted)
            yield min(int(self.done.sum()) * self.fitted.size, self.pixels)

    @property
    def _read_there(self) -> bool:
        """Whether the data are read by those who fit them."""
        return getattr(self.y, "read_anywhere", False)

    def _ends(self, block: int) -> tuple[int, int]:
        size = self.fitted.size
        return block * size, min((block + 1) * size, self.pixels)

    def _data(self, block: int) -> np.ndarray:
        return rows(self.y, self.map, *self._ends(block))

    def _task(self, block: int) -> tuple:
        """Data, what is known, and starts, with the pixels of the block along their first axis."""
        first, last = self._ends(block)
        data = PartOf(self.y, self.map, first, last) if self._read_there else self._data(block)
        known = {n: a[first:last] for n, a in self.known.items()}
        if callable(self.starts):
            return data, known, self.starts, block
        return data, known, [{n: a[first:last] for n, a in s.items()} for s in self.starts], block

    def _keep(self, block: int, rows: dict[str, np.ndarray]) -> None:
        """What is new, or better than what is there."""
        for name, values in rows.items():
            if name not in self.arrays:
                nothing = {"status": STATUS.index("not fitted")}.get(name, 0)
                nothing = np.nan if values.dtype.kind == "f" else nothing
                shape = (self.pixels, *values.shape[1:])
                self.arrays[name] = np.full(shape, nothing, values.dtype)
        there = slice(*self._ends(block))
        usable = ~np.isin(rows["status"], [STATUS.index(s) for s in UNUSABLE])
        better = usable & ~(rows["loss"] >= self.arrays["loss"][there])
        better |= np.full(len(better), self.round == 0)
        for name, values in rows.items():
            self.arrays[name][there][better] = values[better]
        self.done[block] = True


def _map_shape(y, datum: tuple[int, ...]) -> tuple[int, ...]:
    """**Raises:** `ValueError` for data of another shape or kind, and no pixels."""
    lead = y.ndim - len(datum)
    if lead < 1 or tuple(y.shape[lead:]) != datum:
        raise ValueError(
            f"data of shape {tuple(y.shape)}; a map whose last axes are {datum} is needed"
        )
    if np.issubdtype(y.dtype, np.complexfloating):
        raise ValueError("the data are complex: give real and imaginary part along a last axis")
    if not math.prod(y.shape[:lead]):
        raise ValueError(f"data of shape {tuple(y.shape)}: there are no pixels")
    return tuple(y.shape[:lead])


def _threads() -> Workers:
    """One for each device, or for each core."""
    on_cpu = jax.default_backend() == "cpu"
    count = len(os.sched_getaffinity(0)) if on_cpu else len(jax.local_devices())
    return Workers(lambda: ThreadPoolExecutor(count), count)
