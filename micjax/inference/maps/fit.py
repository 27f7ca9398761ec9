"""A map of fits: one small inverse problem for each pixel, all of them at once."""

import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from micjax.core.coordinates import Coordinates
from micjax.core.problem import InverseProblem
from micjax.core.progress import progress, until_interrupted
from micjax.inference.errors.laplace import prior_sd_of
from micjax.inference.maps.descent import RUNNING, Pace
from micjax.inference.maps.equations import Pixel
from micjax.inference.maps.programs import compiled, pixels_first, side_by_side
from micjax.inference.maps.rows import Given, Rows, check_starts, inside, maps, rows
from micjax.inference.maps.status import STATUS, UNUSABLE, Told
from micjax.inference.solvers.laws import law_of

log = logging.getLogger("micjax")

SIDE_BY_SIDE = 128  # pixels: their sums stay in the first cache of a CPU
BLOCK = 1 << 14  # pixels between two looks of Python
NUMBERS = 1 << 25  # of a block, at most: 128 MB of data
FIRST_STEPS = 8  # after which those that have not ended are brought together


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MapFit:
    """Fits of all pixels of a map; every array begins with the axes of the map.

    - `values`, `sd`: physical values and standard deviations, by name; NaN without data.
    - `status`: which of `micjax.inference.maps.status.STATUS`.
    - `loss`: -log posterior but for a constant. `chi_squared` of `points` data.
    - `bound`, `identified`: by name, whether it is at an end of its prior; whether the data say
        anything about it.
    - `steps`: that were taken.
    """

    values: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    status: Int[np.ndarray, "..."]
    loss: Float[np.ndarray, "..."]
    chi_squared: Float[np.ndarray, "..."]
    points: Int[np.ndarray, "..."]
    bound: dict[str, np.ndarray]
    identified: dict[str, np.ndarray]
    steps: Int[np.ndarray, "..."]

    def usable(self) -> Bool[np.ndarray, "..."]:
        """Whether there are values."""
        return ~np.isin(self.status, [STATUS.index(s) for s in UNUSABLE])

    def counts(self) -> dict[str, int]:
        """How many pixels have each status."""
        return {s: int(np.sum(self.status == i)) for i, s in enumerate(STATUS)}


def fit_map(
    problem: InverseProblem,
    x: Any,
    y: Any,
    *,
    starts: Given | Sequence[Given] | None = None,
    known: Given | None = None,
    linear: Sequence[str] = (),
    neighbours: int = 0,
    steps: int = 100,
    tolerance: float = 1e-3,
) -> MapFit:
    """The best values of `problem` for each pixel of `y`, with error bars and a status.

    Damped Gauss-Newton on the expected curvature (Levenberg 1944, Marquardt 1963, Fisher scoring),
    each pixel until a further step would gain less than `tolerance` nats.

    **Arguments:**

    - `problem`: of one pixel. Its noise gives a normal, Poisson or Student t law.
    - `x`: where the data of a pixel were measured, the same for all.
    - `y`: data `[*map, *datum]`; what is not finite, or masked, does not count. Anything
        that gives blocks of its first axes when it is indexed: an array, a dataset of a file.
    - `starts`: values by name, `[*map, ...]` or the same for all; several of them: the best fit is
        taken. The current values without them.
    - `known`: what is known and other for each pixel, by name, `[*map, ...]`.
    - `linear`: names of unknowns that the prediction is proportional to, or that are added to it:
        they are solved for in each step and need no start.
    - `neighbours`: so many times each pixel begins again from the values of that neighbour in the
        map whose fit is best; the better fit is kept.
    - `steps`: at most.

    **Returns:** after Ctrl-C the fits so far; status "not fitted" says which pixels lack.

    **Raises:** `ValueError` for data of another shape, data that no law has, unknown names, starts
    outside of their prior.
    """
    options = {"known": known, "linear": tuple(linear), "steps": steps, "tolerance": tolerance}
    fits = Fits(problem, x, y, starts=starts, **options)
    total, best = (1 + neighbours) * fits.pixels, None
    with progress("map", total) as show, until_interrupted() as interruption:
        for done in fits.run():
            show(done)
        best = fits.result()
        for again in range(1, neighbours + 1):
            fits = Fits(problem, x, y, starts=from_neighbours(problem, best), **options)
            for done in fits.run():
                show(again * fits.pixels + done)
            best = better_of(best, fits.result())
    if interruption.happened:
        if not fits.arrays and best is None:
            raise KeyboardInterrupt
        best = fits.result() if best is None else best
        log.warning("interrupted: %s", best.counts())
    return best


def from_neighbours(problem: InverseProblem, fit: MapFit) -> dict[str, np.ndarray]:
    """For each pixel the values of that neighbour along an axis whose misfit is least; where these
    are no place to start from, the problem's own."""
    shape = fit.status.shape
    misfit = np.where(fit.usable(), fit.chi_squared / np.maximum(fit.points, 1), np.inf)
    index = np.arange(fit.status.size).reshape(shape)
    best, least = index.copy(), np.full(shape, np.inf)
    for axis, length in enumerate(shape):
        for step in (-1, 1):
            there = np.clip(np.arange(length) + step, 0, length - 1)
            theirs = np.take(misfit, there, axis)
            closer = (theirs < least) & (np.take(index, there, axis) != index)
            best = np.where(closer, np.take(index, there, axis), best)
            least = np.where(closer, theirs, least)
    rows = best.ravel()
    own, unknowns, out = problem.values(), problem.unknowns(), {}
    for name, values in fit.values.items():
        theirs = values.reshape(-1, *values.shape[len(shape) :])[rows]
        allowed = np.asarray(inside(unknowns[name], jnp.asarray(theirs)))
        allowed = allowed.reshape(-1, *[1] * (theirs.ndim - 1))
        out[name] = np.where(allowed, theirs, np.asarray(own[name])).reshape(values.shape)
    return out


def better_of(first: MapFit, second: MapFit) -> MapFit:
    """Pixel by pixel the fit of the lower loss."""
    lower = second.usable() & ~(second.loss >= first.loss)

    def pick(a, b):
        return np.where(lower.reshape(lower.shape + (1,) * (a.ndim - lower.ndim)), b, a)

    return jax.tree.map(pick, first, second)


class Fits:
    """The fits of a map, block by block: what is done is kept, whatever ends it.

    Arguments as of `fit_map`.
    """

    def __init__(self, problem, x, y, *, starts, known, linear, steps, tolerance):
        self.pixel = Pixel(problem, jax.tree.map(jnp.asarray, x), linear)
        self.steps, self.tolerance = steps, tolerance
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
        self.chunk = SIDE_BY_SIDE if jax.default_backend() == "cpu" else size
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

    def run(self) -> Iterator[int]:
        """Yields how many pixels are done, after each block. Blocks that are done are passed by."""
        devices = jax.local_devices()
        workers = len(devices) if jax.default_backend() != "cpu" else len(os.sched_getaffinity(0))
        todo = iter(np.flatnonzero(~self.done).tolist())
        with ThreadPoolExecutor(workers) as pool:
            running: dict[Future, int] = {}
            try:
                while True:
                    # the first one by itself: it compiles
                    wanted = workers + 1 if self.done.any() else 1
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

    def result(self) -> MapFit:
        arrays = {n: a.reshape(self.map + a.shape[1:]) for n, a in self.arrays.items()}

        def named(kind):
            return {n.partition(" ")[2]: a for n, a in arrays.items() if n.startswith(kind + " ")}

        groups = {g: named(g) for g in ("values", "sd", "bound", "identified")}
        return MapFit(**groups, **{n: a for n, a in arrays.items() if " " not in n})

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
        with jax.default_device(device):
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
                jnp.asarray(self.tolerance, float),
            )
            return _named(jax.device_get((told, best.steps)), count)

    def _descended(self, functions, known, y, flat, chunks: int) -> Pace:
        """All pixels for a few steps, and those that have not ended then by themselves."""
        few = min(FIRST_STEPS, self.steps)

        def descend(known, y, pace, chunks, steps):
            # numbers as arrays: as Python's own each would be a program of its own
            limits = jnp.asarray(chunks), jnp.asarray(steps), jnp.asarray(self.tolerance, float)
            return functions.descend(self.pixel, self.law, known, y, pace, *limits)

        pace = descend(known, y, functions.begun(flat), chunks, few)
        ended = np.asarray(pace.ended)
        left = np.flatnonzero(
            (ended == RUNNING).ravel() & (np.arange(ended.size) < chunks * self.chunk)
        )
        if not len(left) or self.steps <= few:
            return pace
        chunks = -(-len(left) // self.chunk)
        order = np.resize(left, ended.size)  # copies fill what is behind
        some = functions.gathered((known, y, pace), order)
        moved = descend(*some, chunks, self.steps - few)
        return functions.scattered(pace, moved, order[: chunks * self.chunk])

    def _side_by_side(self, tree):
        """[pixel, ...] -> [chunk, ..., pixel of it], filled up with the last pixel."""

        def laid(a):
            a = np.concatenate([a, np.repeat(a[-1:], self.block - len(a), axis=0)])
            return side_by_side(a, self.chunk, np)

        return jax.tree.map(laid, tree)

    def _keep(self, block: int, rows: dict[str, np.ndarray]) -> None:
        first = block * self.block
        for name, values in rows.items():
            if name not in self.arrays:
                nothing = {"status": STATUS.index("not fitted")}.get(name, 0)
                nothing = np.nan if values.dtype.kind == "f" else nothing
                shape = (self.pixels, *values.shape[1:])
                self.arrays[name] = np.full(shape, nothing, values.dtype)
            self.arrays[name][first : first + len(values)] = values
        self.done[block] = True


def _named(fetched: tuple[Told, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Rows of pixels by name; those of an unknown as "values NAME"."""
    told, steps = fetched
    out = {}
    for field, value in told._asdict().items():
        if field == "covariance":
            continue
        parts = (
            {f"{field} {n}": a for n, a in value.items()}
            if isinstance(value, dict)
            else {field: value}
        )
        out |= parts
    out["steps"] = steps
    return {n: pixels_first(a, np)[:count] for n, a in out.items()}
