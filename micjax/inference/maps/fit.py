"""A map of fits: one small inverse problem for each pixel, all of them at once."""

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from micjax.core.problem import InverseProblem
from micjax.core.progress import progress, until_interrupted
from micjax.inference.maps.blocks.block import Pursuit, Starts
from micjax.inference.maps.blocks.dealt import Workers, WorkersDied
from micjax.inference.maps.blocks.fits import Fits
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.rows import Given

log = logging.getLogger("micjax")


def fit_map(
    problem: InverseProblem,
    x: Any,
    y: Any,
    *,
    starts: Given | Sequence[Given] | Starts | None = None,
    known: Given | None = None,
    linear: Sequence[str] = (),
    neighbours: int = 0,
    steps: int = 100,
    tolerance: float = 1e-3,
    covariance: bool = False,
    sizes: Sequence[str] = (),
    executor: Executor | None = None,
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
        taken. The current values without them. Or `starts(problem, x, y)`, which gives them for
        some pixels of the map, `y` being `[pixel, *datum]`.
    - `known`: what is known and other for each pixel, by name, `[*map, ...]`.
    - `linear`: names of unknowns that the prediction is proportional to, or that are added to it:
        they are solved for in each step and need no start.
    - `neighbours`: so many times each pixel begins again from the values of that neighbour in the
        map whose fit is best; the better fit is kept.
    - `steps`: at most.
    - `covariance`: whether that of all values of a pixel is kept.
    - `sizes`: names of unknowns that say how large a part of the model is: where one is below four
        of its standard deviations, neither it nor the other unknowns of this part are identified.
        What has a half-normal or exponential prior, and may be nothing, is one of them.
    - `executor`: fits blocks of the map, on any `concurrent.futures.Executor` such as that of Dask;
        threads of this process without one.

    **Returns:** after Ctrl-C, or when all workers died, the fits so far; status "not fitted" says
    which pixels lack.

    **Raises:** `ValueError` for data of another shape, data that no law has, unknown names, starts
    outside of their prior, an executor that forks.
    """
    how = Pursuit(tuple(linear), neighbours, steps, tolerance, covariance, tuple(sizes))
    workers = None if executor is None else Workers.of(executor)
    fits = Fits(problem, x, y, starts, known, how, workers)
    with progress("map", fits.fits) as show, until_interrupted() as interruption:
        try:
            for done in fits.run():
                show(done)
        except WorkersDied as error:
            if not fits.arrays:
                raise
            log.error("%s; what there is: %s", error, fits.result().counts())
    if interruption.happened:
        if not fits.arrays:
            raise KeyboardInterrupt
        log.warning("interrupted: %s", fits.result().counts())
    return fits.result()
