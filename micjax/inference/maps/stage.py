"""The fit of a whole map as a stage of a problem."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.maps.blocks import Fits, Pursuit
from micjax.inference.maps.each import one_pixel, pixel_name
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.rows import Given
from micjax.inference.maps.spatial.smooth import smooth_map
from micjax.inference.solution import Solution
from micjax.inference.stage import Arrays, Search

EVERY_S = 5.0  # between two checkpoints

Starts = Callable[[InverseProblem, np.ndarray, np.ndarray], Given | Sequence[Given]]


def fit_each_pixel(
    starts: Starts | None = None,
    *,
    linear: Sequence[str] = (),
    neighbours: int = 0,
    steps: int = 100,
    tolerance: float = 1e-3,
    smooth: Sequence[str] = (),
) -> Search:
    """`fit_map` as a stage, of a problem of `each_pixel`.

    **Arguments:**

    - `starts`: `starts(pixel, x, y) -> values`, as of `fit_map`; `pixel` is the problem of a pixel.
    - `smooth`: unknowns of which neighbouring pixels are alike, see `smooth_map`; with or without
        `forward.` before them.
    - the others: as of `fit_map`.
    """
    smooth = [smooth] if isinstance(smooth, str) else list(smooth)
    how = Pursuit(tuple(linear), neighbours, steps, tolerance, covariance=True)

    def work(problem: InverseProblem, x, y, key, report, before: Arrays) -> Iterator[Arrays]:
        pixel, known = one_pixel(problem)
        y = np.asarray(y)
        given = _own(problem) if starts is None else starts(pixel, np.asarray(x), y)
        fits = Fits(pixel, x, y, given, known, how)
        if "done" in before:
            fits.restore(before)
        last = -np.inf
        for done in fits.run():
            report(min(done / fits.fits, 1.0), f"{done} of {fits.fits} fits")
            if time.monotonic() - last > EVERY_S:
                last = time.monotonic()
                yield fits.state()
        yield fits.state()
        if smooth:
            named = [n if n in pixel.unknowns() else f"forward.{n}" for n in smooth]

            def told(done: int, left: float):
                report(1.0, f"neighbours, round {done}: {left:.2g} standard deviations to go")

            together = smooth_map(pixel, x, y, fits.result(), named, known=known, report=told)
            yield fits.state() | together.rows()

    return Search(work, _with_fits, "map", goes_on=True)


def map_fit(solution: Solution) -> MapFit | None:
    """The fits of all pixels; None if it was broken off before there was one."""
    arrays = solution.fit.arrays
    return MapFit.of_rows(arrays, solution.problem.forward.shape) if "status" in arrays else None


def _own(problem: InverseProblem) -> dict[str, np.ndarray]:
    """The values of a map by the names of a pixel."""
    return {pixel_name(n): np.asarray(v) for n, v in problem.values().items()}


def _with_fits(problem: InverseProblem, arrays: Mapping[str, np.ndarray]) -> InverseProblem:
    """Where there is no fit, the values that were there."""
    values = {}
    for name, old in problem.values().items():
        new = arrays[f"values {pixel_name(name)}"].reshape(old.shape)
        values[name] = jnp.where(jnp.isfinite(new), new, old)
    return problem.at(values)
