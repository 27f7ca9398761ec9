"""The fits of a map, block by block."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from micjax.core.coordinates import Coordinates
from micjax.core.problem import InverseProblem
from micjax.inference.errors.laplace import prior_sd_of
from micjax.inference.maps.descent import RUNNING, Pace
from micjax.inference.maps.equations import FEW, Pixel
from micjax.inference.maps.programs import compiled, pixels_first, side_by_side
from micjax.inference.maps.result import MapFit, from_neighbours
from micjax.inference.maps.rows import Given, Rows, check_starts, maps, rows
from micjax.inference.maps.status import STATUS, UNUSABLE, Told
from micjax.inference.solvers.laws import law_of

SIDE_BY_SIDE = 128  # pixels: their sums stay in the first cache of a CPU
BLOCK = 1 << 14  # pixels between two looks of Python
NUMBERS = 1 << 25  # of a block, at most: 128 MB of data
NUMBERS_STORED = 1 << 19  # of slopes, where they are: half of the second cache
FIRST_STEPS = 8  # after which those that have not ended are brought together


@dataclasses.dataclass(frozen=True)
class Pursuit:
    """How the fits of a map are made: the arguments of `fit_map` of these names."""

    linear: tuple[str, ...] = ()
    neighbours: int = 0
    steps: int = 100
    tolerance: float = 1e-3
    covariance: bool = False


class Fits:
    """The fits of a map, block by block: what is done is kept, whatever ends it.

    Arguments as of `fit_map`. `state` is all that is needed to go on elsewhere.
    """

    def __init__(
        self,
        problem: InverseProblem,
        x: Any,
        y: Any,
        starts: Given | Sequence[Given] | None = None,
        known: Given | None = None,
        how: Pursuit = Pursuit(),
    ):
        self.pixel = Pixel(problem, jax.tree.map(jnp.asarray, x), how.linear)
        self.how, self.round = how, 0
        self.double = jnp.result_type(float) == jnp.float64
        law = eqx.filter_eval_shape(lambda p: p.problem.noise(p.problem.forward(p.x)), self.pixel)
        self.law, self.datum = law_of(law), tuple(law.batch_shape)
        if not problem.unknowns():
            raise ValueError("the problem has no unknowns: nothing is to be fitted")
        y = y if hasattr(y, "ndim") else np.asarray(y)
        self.y, lead = y, y.ndim - len(self.datum)
        if lead < 1 or tuple(y.shape[lead:]) != self.datum:
            raise ValueError(
                f"data of shape {tuple(y.shape)}; a map whose last axes are {self.datum} is needed"
            )
        if np.issubdtype(y.dtype, np.complexfloating):
            raise ValueError("the data are complex: give real and imaginary part along a last axis")
        self.map = tuple(y.shape[:lead])
        if not self.pixels:
            raise ValueError(f"data of shape {tuple(y.shape)}: there are no pixels")
        self.known = maps(problem, dict(known or {}), self.map, "known")
        starts = [starts] if isinstance(starts, Mapping) else list(starts or [{}])
        self.starts = [
            maps(problem, problem.values() | dict(s), self.map, "starts") for s in starts
        ]
        for start in self.starts:
            check_starts(problem, start)
        coordinates, unknowns = Coordinates(problem), problem.unknowns()
        theta = problem.unconstrain(problem.values())
        widths = [prior_sd_of(unknowns[n], theta[n]) for n in coordinates.names]
        self.prior_sd = jnp.asarray(np.concatenate(widths), float)
        size = max(min(BLOCK, NUMBERS // math.prod(self.datum)), SIDE_BY_SIDE)
        size = min(size, -(-self.pixels // SIDE_BY_SIDE) * SIDE_BY_SIDE)
        self.chunk = size
        if jax.default_backend() == "cpu":
            stored = len(self.prior_sd) * math.prod(self.datum) if len(self.prior_sd) > FEW else 1
            self.chunk = int(np.clip(NUMBERS_STORED // stored, 16, SIDE_BY_SIDE))
        self.block = size // self.chunk * self.chunk
        self.arrays: dict[str, np.ndarray] = {}
        self.done = np.zeros(-(-self.pixels // self.block), bool)
        if "rate" in self.law.parameters:  # before anything is fitted, which an error would lose
            below = sum(int((self._read(i)[0] < 0).sum()) for i in range(len(self.done)))
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
            self._begin_again(from_neighbours(self.pixel.problem, self.result()))

    def result(self) -> MapFit:
        return MapFit.of_rows(self.arrays, self.map)

    def state(self) -> dict[str, np.ndarray]:
        """By name; the same arrays that go on being filled."""
        per_pixel = np.repeat(self.done, self.block)[: self.pixels]
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
        parts = np.split(np.asarray(state["done"]), range(self.block, self.pixels, self.block))
        self.done = np.array([part.all() for part in parts])

    def _begin_again(self, starts: Given) -> None:
        self.round += 1
        self.starts = [maps(self.pixel.problem, starts, self.map, "starts")]
        self.done = np.zeros_like(self.done)

    def _round(self) -> Iterator[int]:
        """Yields how many pixels are done."""
        devices = jax.local_devices()
        workers = len(devices) if jax.default_backend() != "cpu" else len(os.sched_getaffinity(0))
        todo = iter(np.flatnonzero(~self.done).tolist())
        with ThreadPoolExecutor(workers) as pool:
            running: dict[Future, int] = {}
            try:
                while True:
                    # the first one by itself: it compiles
                    wanted = workers + 1 if self.done.any() or self.round else 1
                    for i in itertools.islice(todo, wanted - len(running)):
                        device = devices[i % len(devices)]
                        running[pool.submit(self._block, self._read(i), device)] = i
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self._keep(running.pop(future), future.result())
                        yield min(int(self.done.sum()) * self.block, self.pixels)
            finally:
                for future in running:
                    future.cancel()

    def _read(self, block: int) -> tuple[np.ndarray, Rows, list[Rows]]:
        """Data, what is known, and starts, with the pixels of the block along their first axis."""
        first, last = block * self.block, min((block + 1) * self.block, self.pixels)
        y = rows(self.y, self.map, first, last).reshape(last - first, -1)
        y = np.asarray(y, jnp.result_type(float))
        cut = [{n: a[first:last] for n, a in part.items()} for part in (self.known, *self.starts)]
        return y, cut[0], cut[1:]

    def _block(self, read, device) -> dict[str, np.ndarray]:
        y, known, starts = read
        count = len(y)
        # of the thread that began: others have the settings of the process
        with jax.default_device(device), jax.enable_x64(self.double):
            functions = compiled()
            y, known = self._side_by_side((y, known))
            best = None
            for start in starts:
                flat = functions.flat(self.pixel, known, self._side_by_side(start))
                pace = self._descended(functions, known, y, flat, -(-count // self.chunk))
                best = pace if best is None else functions.better(best, pace)
            told = functions.told(
                self.pixel,
                self.law,
                known,
                y,
                best,
                self.prior_sd,
                jnp.asarray(self.how.tolerance, float),
            )
            named = _named(jax.device_get((told, best.steps)), count)
        return (
            named if self.how.covariance else {n: a for n, a in named.items() if n != "covariance"}
        )

    def _descended(self, functions, known, y, flat, chunks: int) -> Pace:
        """All pixels for a few steps, and those that have not ended then by themselves."""
        few = min(FIRST_STEPS, self.how.steps)

        def descend(known, y, pace, chunks, steps):
            # numbers as arrays: as Python's own each would be a program of its own
            limits = jnp.asarray(chunks), jnp.asarray(steps), jnp.asarray(self.how.tolerance, float)
            return functions.descend(self.pixel, self.law, known, y, pace, *limits)

        pace = descend(known, y, functions.begun(flat), chunks, few)
        ended = np.asarray(pace.ended)
        left = np.flatnonzero(
            (ended == RUNNING).ravel() & (np.arange(ended.size) < chunks * self.chunk)
        )
        if not len(left) or self.how.steps <= few:
            return pace
        chunks = -(-len(left) // self.chunk)
        order = np.resize(left, ended.size)  # copies fill what is behind
        some = functions.gathered((known, y, pace), order)
        moved = descend(*some, chunks, self.how.steps - few)
        return functions.scattered(pace, moved, order[: chunks * self.chunk])

    def _side_by_side(self, tree):
        """[pixel, ...] -> [chunk, ..., pixel of it], filled up with the last pixel."""

        def laid(a):
            a = np.concatenate([a, np.repeat(a[-1:], self.block - len(a), axis=0)])
            return side_by_side(a, self.chunk, np)

        return jax.tree.map(laid, tree)

    def _keep(self, block: int, rows: dict[str, np.ndarray]) -> None:
        """What is new, or better than what is there."""
        first = block * self.block
        for name, values in rows.items():
            if name not in self.arrays:
                nothing = {"status": STATUS.index("not fitted")}.get(name, 0)
                nothing = np.nan if values.dtype.kind == "f" else nothing
                shape = (self.pixels, *values.shape[1:])
                self.arrays[name] = np.full(shape, nothing, values.dtype)
        there = slice(first, first + len(rows["status"]))
        usable = ~np.isin(rows["status"], [STATUS.index(s) for s in UNUSABLE])
        better = usable & ~(rows["loss"] >= self.arrays["loss"][there])
        better |= np.full(len(better), self.round == 0)
        for name, values in rows.items():
            self.arrays[name][there][better] = values[better]
        self.done[block] = True


def _named(fetched: tuple[Told, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Rows of pixels by name; those of an unknown as "values NAME"."""
    told, steps = fetched
    out = {}
    for field, value in told._asdict().items():
        parts = (
            {f"{field} {n}": a for n, a in value.items()}
            if isinstance(value, dict)
            else {field: value}
        )
        out |= parts
    out["steps"] = steps
    return {n: pixels_first(a, np)[:count] for n, a in out.items()}
