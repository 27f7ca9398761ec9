"""A map of fits: one small inverse problem for each pixel, all of them at once."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.coordinates import Coordinates
from micjax.core.problem import InverseProblem, Values, on_edge
from micjax.core.progress import progress
from micjax.core.tree import array_of, named_leaves
from micjax.inference.errors.laplace import prior_sd_of
from micjax.inference.maps.descent import RUNNING, Pace, begun, descended
from micjax.inference.maps.equations import Pixel
from micjax.inference.maps.status import STATUS, Told, told
from micjax.inference.solvers.laws import law_of

SIDE_BY_SIDE = 128  # pixels: their sums stay in the first cache of a CPU
BLOCK = 1 << 14  # pixels between two looks of Python
NUMBERS = 1 << 25  # of a block, at most: 128 MB of data
FIRST_STEPS = 8  # after which those that have not ended are brought together


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

    def counts(self) -> dict[str, int]:
        """How many pixels have each status."""
        return {s: int(np.sum(self.status == i)) for i, s in enumerate(STATUS)}


def fit_map(
    problem: InverseProblem,
    x: Any,
    y: Float[np.ndarray, "..."],
    *,
    starts: Values | Sequence[Values] | None = None,
    known: Mapping[str, np.ndarray] | None = None,
    steps: int = 100,
    tolerance: float = 1e-3,
) -> MapFit:
    """The best values of `problem` for each pixel of `y`, with error bars and a status.

    Damped Gauss-Newton on the expected curvature (Levenberg 1944, Marquardt 1963, Fisher scoring),
    each pixel until a further step would gain less than `tolerance` nats.

    **Arguments:**

    - `problem`: of one pixel. Its noise gives a normal, Poisson or Student t law.
    - `x`: where the data of a pixel were measured, the same for all.
    - `y`: data `[*map, *datum]`; NaN does not count. Anything that gives blocks of its first axes
        when it is indexed: an array, a dataset of a file.
    - `starts`: values by name, `[*map, ...]` or the same for all; several of them: the best fit is
        taken. The current values without them.
    - `known`: what is known and other for each pixel, by name, `[*map, ...]`.
    - `steps`: at most.

    **Raises:** `ValueError` for data of another shape, data that no law has, unknown names, starts
    outside of their prior.
    """
    fits = Fits(problem, x, y, starts=starts, known=known, steps=steps, tolerance=tolerance)
    with progress("map", fits.pixels) as show:
        for done in fits.run():
            show(done)
    return fits.result()


class Fits:
    """The fits of a map, block by block: what is done is kept, whatever ends it.

    Arguments as of `fit_map`.
    """

    def __init__(self, problem, x, y, *, starts, known, steps, tolerance):
        self.pixel = Pixel(problem, jax.tree.map(jnp.asarray, x))
        self.y, self.steps, self.tolerance = y, steps, tolerance
        law = eqx.filter_eval_shape(lambda p: p.problem.noise(p.problem.forward(p.x)), self.pixel)
        self.law, self.datum = law_of(law), tuple(law.batch_shape)
        lead = y.ndim - len(self.datum)
        if lead < 1 or tuple(y.shape[lead:]) != self.datum:
            raise ValueError(
                f"data of shape {tuple(y.shape)}; a map whose last axes are {self.datum} is needed"
            )
        self.map = tuple(y.shape[:lead])
        self.known = _maps(known or {}, self.map, problem, "known")
        starts = [starts] if isinstance(starts, Mapping) else list(starts or [{}])
        self.starts = [
            _maps(problem.values() | dict(s), self.map, problem, "starts") for s in starts
        ]
        for start in self.starts:
            _check_starts(problem, start)
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

    @property
    def pixels(self) -> int:
        return math.prod(self.map)

    def run(self) -> Iterator[int]:
        """Yields how many pixels are done, after each block. Blocks that are done are passed by."""
        devices = jax.local_devices()
        workers = len(devices) if jax.default_backend() != "cpu" else len(os.sched_getaffinity(0))
        todo = iter(np.flatnonzero(~self.done))
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

    def _read(self, block: int) -> tuple[np.ndarray, Values, list[Values]]:
        """Data, what is known, and starts, with the pixels of the block along their first axis."""
        first, last = block * self.block, min((block + 1) * self.block, self.pixels)
        y = _rows(self.y, self.map, first, last).reshape(last - first, -1)
        if np.iscomplexobj(y):
            raise ValueError("the data are complex: give real and imaginary part along a last axis")
        y = np.asarray(y, jnp.result_type(float))
        if "rate" in self.law.parameters and (y < 0).any():
            raise ValueError(
                f"{int((y < 0).sum())} negative counts between pixels {first} and {last}"
            )
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
            told = functions.told(self.pixel, self.law, known, y, best, self.prior_sd)
            return _named(jax.device_get((told, best.steps)), count)

    def _descended(self, functions, known, y, flat, chunks: int) -> Pace:
        """All pixels for a few steps, and those that have not ended then by themselves."""
        arguments = (self.pixel, self.law)
        few = min(FIRST_STEPS, self.steps)
        tolerance = jnp.asarray(self.tolerance, float)
        pace = functions.descend(
            *arguments, known, y, functions.begun(flat), chunks, few, tolerance
        )
        ended = np.asarray(pace.ended)
        left = np.flatnonzero(
            (ended == RUNNING).ravel() & (np.arange(ended.size) < chunks * self.chunk)
        )
        if not len(left) or self.steps <= few:
            return pace
        chunks = -(-len(left) // self.chunk)
        order = np.resize(left, ended.size)  # copies fill what is behind
        some = functions.gathered((known, y, pace), order)
        moved = functions.descend(*arguments, *some, chunks, self.steps - few, tolerance)
        return functions.scattered(pace, moved, order[: chunks * self.chunk])

    def _side_by_side(self, tree):
        """[pixel, ...] -> [chunk, ..., pixel of it], with the last pixel again behind all of them."""

        def laid(a):
            a = np.concatenate([a, np.repeat(a[-1:], self.block - len(a), axis=0)])
            return np.moveaxis(a.reshape(-1, self.chunk, *a.shape[1:]), 1, -1)

        return jax.tree.map(laid, tree)

    def _keep(self, block: int, rows: dict[str, np.ndarray]) -> None:
        first = block * self.block
        for name, values in rows.items():
            if name not in self.arrays:
                self.arrays[name] = np.zeros((self.pixels, *values.shape[1:]), values.dtype)
            self.arrays[name][first : first + len(values)] = values
        self.done[block] = True


class Compiled(NamedTuple):
    """Programs for blocks, [chunk, ..., pixel of it]."""

    flat: Any
    begun: Any
    descend: Any
    better: Any
    gathered: Any
    scattered: Any
    told: Any


@functools.cache
def compiled() -> Compiled:
    jit = functools.partial(eqx.filter_jit, compiler_options=_options())
    return Compiled(
        *(jit(f) for f in (_flat, jax.vmap(begun), _descend, _better, _gathered, _scattered, _told))
    )


def _options() -> dict[str, bool]:
    """On CPUs the older way to fuse operations, which vectorises sums over several operands (jax
    0.10: five times as fast); where it is not known any more, none."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda a: a + 1, compiler_options=options)(jnp.zeros(1))
    except Exception:  # of a compiler that has left it behind
        return {}
    return options if jax.default_backend() == "cpu" else {}


def _flat(pixel: Pixel, known: Values, values: Values):
    """Unconstrained coordinates."""

    def of_one(known, values):
        coordinates = pixel.coordinates(known)
        return coordinates.vector(coordinates.problem.unconstrain(values))

    return jax.vmap(jax.vmap(of_one, -1, -1))(known, values)


def _descend(pixel, law, known, y, pace: Pace, chunks, most, tolerance) -> Pace:
    """The first `chunks` of them."""

    def one_chunk(i, pace):
        some = jax.tree.map(lambda a: a[i], (known, y, pace))
        moved = descended(pixel, law, *some, most, tolerance)
        return jax.tree.map(lambda a, b: a.at[i].set(b), pace, moved)

    return jax.lax.fori_loop(0, chunks, one_chunk, pace)


def _better(first: Pace, second: Pace) -> Pace:
    lower = jnp.nan_to_num(second.loss, nan=jnp.inf) < jnp.nan_to_num(first.loss, nan=jnp.inf)
    pick = lambda a, b: jnp.where(lower[:, None] if a.ndim == 3 else lower, b, a)  # noqa: E731
    return jax.tree.map(pick, first, second)


def _pixels_first(a: Array) -> Array:
    return jnp.moveaxis(a, -1, 1).reshape(-1, *a.shape[1:-1])


def _gathered(tree, order):
    def of(a):
        rows = _pixels_first(a)[order]
        return jnp.moveaxis(rows.reshape(a.shape[0], a.shape[-1], *a.shape[1:-1]), 1, -1)

    return jax.tree.map(of, tree)


def _scattered(tree, moved, order):
    def of(a, b):
        rows = _pixels_first(a).at[order].set(_pixels_first(b)[: len(order)])
        return jnp.moveaxis(rows.reshape(a.shape[0], a.shape[-1], *a.shape[1:-1]), 1, -1)

    return jax.tree.map(of, tree, moved)


def _told(pixel, law, known, y, pace: Pace, prior_sd) -> Told:
    return jax.lax.map(lambda a: told(pixel, law, *a, prior_sd), (known, y, pace))


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
    return {n: np.moveaxis(a, -1, 1).reshape(-1, *a.shape[1:-1])[:count] for n, a in out.items()}


def _rows(y, shape: tuple[int, ...], first: int, last: int) -> np.ndarray:
    """Pixels first to last of a map, in the order of its axes, with as little as possible read."""
    if len(shape) == 1:
        return np.asarray(y[first:last])
    row = math.prod(shape[1:])
    low, high = first // row, -(-last // row)
    some = np.asarray(y[low:high])
    return some.reshape(-1, *some.shape[len(shape) :])[first - low * row : last - low * row]


def _maps(values: Mapping, shape, problem, what: str) -> dict[str, np.ndarray]:
    """Arrays whose first axis are the pixels."""
    out = {}
    for name, value in values.items():
        leaf = np.shape(array_of(named_leaves(problem._model()).get(name)))
        value = np.asarray(value, jnp.result_type(float))
        out[name] = np.broadcast_to(value, shape + leaf).reshape(-1, *leaf)
    return out


def _check_starts(problem: InverseProblem, start: Values) -> None:
    for name, prior in problem.unknowns().items():
        values = jnp.asarray(start[name])
        inside = np.asarray(
            jax.vmap(lambda v: prior.support(v) & ~jnp.any(on_edge(prior, v)))(values)
        )
        if not inside.all():
            wrong = np.asarray(values)[~inside]
            raise ValueError(
                f"starts of {name}: {len(wrong)} of {len(inside)} are not inside of what its prior "
                f"allows ({prior.support}), such as {wrong.ravel()[0]}"
            )
