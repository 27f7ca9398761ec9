"""The fits of one block of pixels: all that a worker needs to know of a map."""

import dataclasses
import math
from collections.abc import Callable, Sequence
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
from micjax.inference.maps.rows import Given, Rows, check_starts, maps, moved_inside, rows
from micjax.inference.maps.status import Told
from micjax.inference.solvers.laws import DataLaw, law_of

SIDE_BY_SIDE = 128  # pixels, at most
SUMS = 5000  # of them, which stay in the first cache of a CPU
BLOCK = 1 << 14  # pixels between two looks of Python
NUMBERS = 1 << 25  # of a block, at most: 128 MB of data
NUMBERS_CPU = 1 << 22  # likewise: Ctrl-C waits for the blocks that threads are at
NUMBERS_STORED = 1 << 19  # of slopes, where they are: half of the second cache
FIRST_STEPS = 8  # after which those that have not ended are brought together

Starts = Callable[[InverseProblem, np.ndarray, np.ndarray], Given | Sequence[Given]]


@dataclasses.dataclass(frozen=True)
class Pursuit:
    """How the fits of a map are made: the arguments of `fit_map` of these names."""

    linear: tuple[str, ...] = ()
    neighbours: int = 0
    steps: int = 100
    tolerance: float = 1e-3
    covariance: bool = False


@dataclasses.dataclass(frozen=True)
class PartOf:
    """Pixels `first` to `last` of data that are read where they are needed.

    **Arguments:**

    - `source`: gives arrays of its first axis when it is indexed.
    - `shape`: of the map.
    """

    source: Any
    shape: tuple[int, ...]
    first: int
    last: int

    def read(self) -> np.ndarray:
        return rows(self.source, self.shape, self.first, self.last)


@dataclasses.dataclass(frozen=True)
class BlockFits:
    """Fits blocks of pixels, `[pixel, ...]`.

    **Arguments:**

    - `law`: of the data, `datum` the shape of those of a pixel.
    - `widths`: of the prior, of each coordinate.
    - `size`: of a block, a multiple of `chunk`, the pixels side by side.
    - `double`: whether in double precision.
    """

    pixel: Pixel
    how: Pursuit
    law: DataLaw
    datum: tuple[int, ...]
    widths: np.ndarray
    size: int
    chunk: int
    double: bool

    @classmethod
    def of(cls, problem: InverseProblem, x: Any, how: Pursuit) -> "BlockFits":
        """For a map of any size.

        **Raises:** `ValueError` for a problem without unknowns, and data that no law has.
        """
        pixel = Pixel(problem, jax.tree.map(jnp.asarray, x), how.linear)
        of_data = eqx.filter_eval_shape(lambda p: p.problem.noise(p.problem.forward(p.x)), pixel)
        law, datum = law_of(of_data), tuple(of_data.batch_shape)
        if not problem.unknowns():
            raise ValueError("the problem has no unknowns: nothing is to be fitted")
        numbers = math.prod(datum)
        most = NUMBERS_CPU if jax.default_backend() == "cpu" else NUMBERS
        size = chunk = max(min(BLOCK, most // numbers), SIDE_BY_SIDE)
        if jax.default_backend() == "cpu":
            unknowns = len(Coordinates(problem).owner)
            most = SUMS // (2 + unknowns * (unknowns + 3) // 2)
            most = NUMBERS_STORED // (unknowns * numbers) if unknowns > FEW else most
            chunk = int(np.clip(1 << (max(most, 1).bit_length() - 1), 16, SIDE_BY_SIDE))
        double = jnp.result_type(float) == jnp.float64
        widths = np.asarray(prior_sd(problem))
        return cls(pixel, how, law, datum, widths, size // chunk * chunk, chunk, double)

    def for_map(self, pixels: int, workers: int | None) -> "BlockFits":
        """With blocks no larger than a map of so many pixels, and so small that all of the workers
        elsewhere have some to do."""
        size = min(self.size, -(-pixels // SIDE_BY_SIDE) * SIDE_BY_SIDE)
        if workers is not None:
            size = min(size, max(pixels // (4 * workers), self.chunk))
        if jax.default_backend() != "cpu":
            return dataclasses.replace(self, size=size, chunk=size)
        return dataclasses.replace(self, size=size // self.chunk * self.chunk)

    def __call__(
        self,
        data: np.ndarray | PartOf,
        known: Rows,
        starts: Sequence[Rows] | Starts,
        device: int = 0,
    ) -> dict[str, np.ndarray]:
        """Rows of pixels by name; those of an unknown as "values NAME".

        **Raises:** `ValueError` for negative counts, and starts outside of a prior.
        """
        devices = jax.local_devices()
        # of the thread that began: others have the settings of the process
        with jax.default_device(devices[device % len(devices)]), jax.enable_x64(self.double):
            y = data.read() if isinstance(data, PartOf) else data
            y = np.asarray(y, jnp.result_type(float))
            law, problem, count = self.law, self.pixel.problem, len(y)
            if "rate" in law.parameters and (y < 0).any():
                raise ValueError(f"{int((y < 0).sum())} negative counts: a Poisson law has none")
            if callable(starts):
                seen = np.isfinite(y).any()  # else there is nothing to begin from
                given = starts(problem, np.asarray(self.pixel.x), y) if seen else {}
                several = [given] if hasattr(given, "items") else given
                given = [moved_inside(problem, some) for some in several]
                starts = starts_of(problem, given, (count,))
            return self._fitted(law, y.reshape(count, -1), known, starts)

    def _fitted(self, law, y: np.ndarray, known: Rows, starts: Sequence[Rows]):
        functions, count, pixel = compiled(), len(y), self.pixel
        y, known = self._side_by_side((y, known))
        best = None
        for start in starts:
            flat = functions.flat(pixel, known, self._side_by_side(start))
            pace = self._descended(functions, law, known, y, flat, -(-count // self.chunk))
            best = pace if best is None else functions.better(best, pace)
        limits = jnp.asarray(self.widths, float), jnp.asarray(self.how.tolerance, float)
        told = functions.told(pixel, law, known, y, best, *limits)
        named = _named(jax.device_get((told, best.steps)), count)
        return {n: a for n, a in named.items() if self.how.covariance or n != "covariance"}

    def _descended(self, functions, law, known, y, flat, chunks: int) -> Pace:
        """All pixels for a few steps, and those that have not ended then by themselves."""
        few = min(FIRST_STEPS, self.how.steps)

        def descend(known, y, pace, chunks, steps):
            # numbers as arrays: as Python's own each would be a program of its own
            limits = jnp.asarray(chunks), jnp.asarray(steps), jnp.asarray(self.how.tolerance, float)
            return functions.descend(self.pixel, law, known, y, pace, *limits)

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
            a = np.concatenate([a, np.repeat(a[-1:], self.size - len(a), axis=0)])
            return side_by_side(a, self.chunk, np)

        return jax.tree.map(laid, tree)


def prior_sd(problem: InverseProblem):
    """Of each coordinate."""
    unknowns, theta = problem.unknowns(), problem.unconstrain(problem.values())
    widths = [prior_sd_of(unknowns[n], theta[n]) for n in Coordinates(problem).names]
    return jnp.asarray(np.concatenate(widths), float)


def starts_of(
    problem: InverseProblem, given: Given | Sequence[Given], shape: tuple[int, ...]
) -> list[Rows]:
    """Places to start from for each pixel of a map of this shape.

    **Raises:** `ValueError` for unknown names, other shapes, places outside of a prior.
    """
    several = [given] if hasattr(given, "items") else list(given)
    out = [maps(problem, problem.values() | dict(values), shape, "starts") for values in several]
    for start in out:
        check_starts(problem, start)
    return out


def _named(fetched: tuple[Told, np.ndarray], count: int) -> dict[str, np.ndarray]:
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
