"""Several points at once, chosen one after the other so that they do not ask the same question.

`greedy_improvement` chooses by draws of the posterior: the next point is the one that adds most to
the best of those chosen. `fantasy_batch` serves every other acquisition: a chosen point is taken as
measured, with the value expected there. Both choose among candidates; `..._in` in a box.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from micjax.active.acquire.paths import Paths
from micjax.active.acquire.scalarise import spread
from micjax.active.acquire.search import Box, Score, maximise
from micjax.active.acquire.values import best_allowed
from micjax.active.gp.process import (
    State,
    Tracked,
    append,
    double,
    predict,
    tell,
    track,
    with_room,
)

CORNER = 1e-6  # rounding of the corner of max(x, 0), relative to the scale of the function
Indices = Int[np.ndarray, "count"]
Allowed = bool | Bool[ArrayLike, "m"]
# the indices chosen so far -> what is added to the logarithm for each candidate
LogWeight = Callable[[Indices], Float[ArrayLike, "m"]]


def positive(x: Float[Array, "..."], corner: ArrayLike) -> Float[Array, "..."]:
    """max(x, 0) with a round corner: (x + sqrt(x^2 + 4 corner^2)) / 2 (Barron 2021).

    Where x < 0 it falls as corner^2 / |x|: its logarithm orders, and has a gradient for, points
    which no draw finds better; the fat tail of Ament et al. (2023, appendix A.4) does the same.
    """
    size = jnp.where(x >= 0.0, x, -x)
    root = 0.5 * (size + jnp.sqrt(size**2 + 4.0 * corner**2))
    return jnp.where(x >= 0.0, root, corner**2 / root)


def log_improvement(
    draws: Float[Array, "s m"], level: Float[Array, "s"], scale: ArrayLike
) -> Float[Array, "m"]:
    """log E[max(f - level, 0)] over draws of f (Ament et al. 2023, eq. 10), for each point.

    With `level` the highest of a batch in each draw (and the best value so far), it is what one
    more point adds to the expected improvement of the batch.

    **Arguments:**

    - `scale`: a typical size of f.
    """
    return jnp.log(jnp.mean(positive(draws - level[:, None], CORNER * scale), axis=0))


_log_improvement = double(eqx.filter_jit(log_improvement))


# --- among candidates --------------------------------------------------------------------------


def greedily(
    score: Callable[[Any], ArrayLike],
    learn: Callable[[Any, int], Any],
    state: Any,
    allowed: Allowed,
    count: int,
    log_weight: LogWeight | None = None,
) -> Indices:
    """`count` candidates, each the best by `score(state)`, then `state = learn(state, index)`."""
    free = np.array(allowed, bool)
    chosen: list[int] = []
    while True:
        total, possible = np.asarray(score(state)), free
        if log_weight is not None:
            weight = np.asarray(log_weight(np.array(chosen, int)))
            total, possible = total + weight, free & (weight > -np.inf)
        chosen.append(int(best_allowed(total, possible, count - len(chosen))[0]))
        if len(chosen) == count:
            return np.array(chosen, int)
        free[chosen[-1]] = False
        state = learn(state, chosen[-1])


def greedy_improvement(
    draws: Float[ArrayLike, "s m"],
    best: Float[ArrayLike, ""] | Float[ArrayLike, "s"],
    allowed: Allowed,
    count: int,
    log_weight: LogWeight | None = None,
) -> Indices:
    """`count` candidates of high joint expected improvement, E[max_j max(f_j - best, 0)].

    The joint improvement is submodular: what is chosen greedily reaches 1 - 1/e of the best batch
    or more (Nemhauser et al. 1978), as far as the draws are the posterior.

    **Arguments:**

    - `draws`: of the function at the candidates, as `paths.draw_values` makes them.
    - `best`: the best value so far; for noisy data one for each draw, its highest at the data.
    - `allowed`: the candidates that may be measured.
    - `log_weight`: of the indices chosen so far, what is added to the logarithm of each candidate:
        log P(feasible), - log seconds; where it is -inf a candidate is not allowed.

    **Raises:** `ValueError` when fewer than `count` candidates are allowed, or a draw is NaN.
    """
    draws = np.asarray(draws, np.float64)
    scale = scale_of(draws)
    return greedily(
        lambda level: _log_improvement(draws, level, scale),
        lambda level, index: np.maximum(level, draws[:, index]),
        np.array(np.broadcast_to(best, draws.shape[:1]), np.float64),
        np.broadcast_to(allowed, draws.shape[1:]),
        count,
        log_weight,
    )


def scale_of(draws: np.ndarray) -> np.ndarray:
    """Of one function or, in the last axis, several; of a constant one, its size."""
    scale = spread(draws.reshape(-1, *draws.shape[2:]), axis=0)
    size = np.max(np.abs(draws), axis=(0, 1))
    return np.where(scale > 0.0, scale, np.where(size > 0.0, size, 1.0))


@double
def fantasy_batch(
    tracked: Tracked,
    score: Callable[[Float[Array, "m"], Float[Array, "m"]], ArrayLike],
    allowed: Allowed,
    count: int,
    log_weight: LogWeight | None = None,
) -> Indices:
    """`count` candidates by any acquisition; what is chosen is taken as measured for the next.

    The value taken is the posterior mean, so that the mean stays and the variance falls: the
    kriging believer (Ginsbourger et al. 2010), by rank-1 updates.

    **Arguments:**

    - `tracked`: the posterior at the candidates.
    - `score`: of mean and standard deviation at the candidates, `[m]`.
    - `allowed`, `log_weight`: as in `greedy_improvement`.

    **Raises:** `ValueError` when fewer than `count` candidates are allowed, or a score is NaN.
    """
    points = np.asarray(tracked.points)

    def of(now: Tracked) -> ArrayLike:
        return score(now.mean, jnp.sqrt(now.variance))

    def learn(now: Tracked, index: int) -> Tracked:
        return tell(now, points[index], np.asarray(now.mean)[index, ...])

    state = with_room(tracked.state, count - 1)
    start = tracked if state is tracked.state else track(state, points)
    return greedily(of, learn, start, np.broadcast_to(allowed, len(points)), count, log_weight)


def thompson(draws: Float[ArrayLike, "s m"], allowed: Allowed) -> Indices:
    """For each draw the candidate where it is highest, none twice (Thompson 1933).

    **Raises:** `ValueError` when fewer candidates than draws are allowed, or a draw is NaN.
    """
    draws = np.asarray(draws)
    allowed = np.broadcast_to(allowed, draws.shape[1:])
    return greedily(lambda turn: draws[turn], lambda turn, _: turn + 1, 0, allowed, len(draws))


# --- in a box ----------------------------------------------------------------------------------


def greedy_improvement_in(
    paths: Paths,
    best: Float[ArrayLike, ""] | Float[ArrayLike, "s"],
    box: Box,
    key: Array,
    count: int,
    near: Float[Array, "k d"] | None = None,
) -> Float[np.ndarray, "count d"]:
    """`count` points of high joint expected improvement: `greedy_improvement` in a box.

    **Arguments:**

    - `paths`: draws of the function, `paths.draw_paths`.
    - `best`: the best value so far, or one for each path.
    - `near`: points about which to look closely, such as the best ones so far.

    **Raises:** `ValueError` when the paths are finite nowhere in the box.
    """
    level = np.array(np.broadcast_to(best, paths.weights.shape[:1]), np.float64)
    scale = _process_scale(paths)
    points = []
    for draw_key in jax.random.split(key, count):
        points.append(best_in(_joint_score, box, draw_key, (paths, level, scale), near))
        level = np.maximum(level, np.asarray(paths(points[-1][None]))[:, 0])
    return np.array(points)


def _joint_score(points: Array, paths: Paths, level: Array, scale: Array) -> Array:
    return log_improvement(paths(points), level, scale)


@double
@eqx.filter_jit
def _process_scale(paths: Paths) -> Array:
    return jnp.sqrt(jnp.max(paths.forward.variance(paths.observed.points)))


def fantasy_batch_in(
    state: State,
    score: Score,
    box: Box,
    key: Array,
    count: int,
    arguments: tuple = (),
    near: Float[Array, "k d"] | None = None,
) -> Float[np.ndarray, "count d"]:
    """`count` points by any acquisition: `fantasy_batch` in a box.

    **Arguments:**

    - `score`: `score(points, state, *arguments)` -> `[m]`, a function of a module (compiled once);
        it calls `gp.posterior`.

    **Raises:** `ValueError` when the score is finite nowhere in the box.
    """
    state = with_room(state, count - 1)
    points = []
    for draw_key in jax.random.split(key, count):
        points.append(best_in(score, box, draw_key, (state, *arguments), near))
        if len(points) < count:
            state = append(state, points[-1], predict(state, points[-1][None])[0][0])
    return np.array(points)


def best_in(
    score: Score, box: Box, key: Array, arguments: tuple, near: Float[Array, "k d"] | None
) -> Float[np.ndarray, "d"]:
    """`search.maximise`, refused where it found no finite score."""
    point, value = maximise(score, box, key, arguments, near)
    if not np.isfinite(value):
        raise ValueError(f"the acquisition is {float(value)} at the best point of the box")
    return np.asarray(point)
