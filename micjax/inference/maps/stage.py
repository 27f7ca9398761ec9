"""The fit of a whole map as a stage of a problem."""

import time
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.maps.blocks.block import Pursuit, Starts
from micjax.inference.maps.blocks.fits import Fits
from micjax.inference.maps.each import one_pixel, pixel_name
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.spatial.shared import share_map
from micjax.inference.maps.spatial.smooth import smooth_map
from micjax.inference.solution import Solution
from micjax.inference.stage import Arrays, Search
from micjax.inference.verdicts.map_residual import widened_map

TOGETHER = "together"  # beginning of an array that says what was fitted so
EVERY_S = 5.0  # between two checkpoints, or so many times as long as one takes
MOST_TIMES = 20.0


def fit_each_pixel(
    starts: Starts | None = None,
    *,
    linear: Sequence[str] = (),
    neighbours: int = 0,
    steps: int = 100,
    tolerance: float = 1e-3,
    sizes: Sequence[str] = (),
    smooth: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
) -> Search:
    """`fit_map` as a stage, of a problem of `each_pixel`.

    **Arguments:**

    - `starts`: `starts(pixel, x, y) -> values`, as of `fit_map`, for some pixels of the map, `y`
        being `[pixel, *datum]`; `pixel` is the problem of a pixel.
    - `smooth`: unknowns of which neighbouring pixels are alike, see `smooth_map`; with or without
        `forward.` before them.
    - `shared`: unknowns that are the same all over the map, or along its rows or columns, see
        `share_map`; likewise.
    - the others: as of `fit_map`.
    """
    smooth = [smooth] if isinstance(smooth, str) else list(smooth)
    if smooth and shared:
        raise ValueError("smooth and shared: what pixels have to do with each other is one of them")
    if shared is not None and not isinstance(shared, Mapping):
        raise ValueError(f"shared = {shared!r}: names with map, row or column each are needed")

    def together(pixel: InverseProblem, x, y, fit: MapFit, known, report) -> MapFit:
        def full(name: str) -> str:
            return name if name in pixel.unknowns() else f"forward.{name}"

        def told(done: int, left: float):
            unit = "standard deviations" if smooth else "nats"
            report(1.0, f"all pixels, round {done}: {left:.2g} {unit} to go")

        if smooth:
            names = [full(n) for n in smooth]
            return smooth_map(pixel, x, y, fit, names, known=known, report=told)
        named = {full(n): over for n, over in shared.items()}
        return share_map(pixel, x, y, fit, named, known=known, report=told)

    how = Pursuit(tuple(linear), neighbours, steps, tolerance, True, tuple(sizes))

    def work(problem: InverseProblem, x, y, key, report, before: Arrays) -> Iterator[Arrays]:
        pixel, known = one_pixel(problem)
        fits = Fits(pixel, x, y, starts or _own(problem), known, how)
        if "done" in before:
            fits.restore(before)
        wanted = -np.inf
        for done in fits.run():
            report(min(done / fits.fits, 1.0), f"{done} of {fits.fits} fits")
            if (now := time.monotonic()) > wanted:
                yield fits.state()
                after = time.monotonic()
                wanted = after + max(EVERY_S, MOST_TIMES * (after - now))
        yield fits.state()
        if not smooth and not shared and fits.result().grown is None:  # nor before a resume
            report(1.0, "errors")
            yield fits.state() | widened_map(pixel, x, fits.y, fits.result(), known).rows()
        if smooth or shared:
            fit = together(pixel, x, y, fits.result(), known, report)
            which = dict.fromkeys(smooth, "smooth") if smooth else dict(shared)
            told = {f"{TOGETHER} {how} {name}": np.array(1) for name, how in which.items()}
            yield fits.state() | fit.rows() | told

    return Search(work, _with_fits, "map", goes_on=True, by_rows=not smooth and not shared)


def map_fit(solution: Solution) -> MapFit | None:
    """The fits of all pixels; None if it was broken off before there was one."""
    arrays = solution.fit.arrays
    return MapFit.of_rows(arrays, solution.problem.forward.shape) if "status" in arrays else None


def fitted_together(solution: Solution) -> dict[str, str]:
    """Unknowns by which pixels had to do with each other, and how: smooth, map, row or column."""
    words = (n.split(" ") for n in solution.fit.arrays)
    return {name: how for first, how, name in (w for w in words if w[0] == TOGETHER)}


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
