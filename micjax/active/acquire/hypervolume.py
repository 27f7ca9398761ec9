"""Two or three objectives at once, all maximised: the volume between a reference and the front.

What the front does not dominate is cut into boxes on the host; the improvement of draws is then a
sum of products, smooth in logarithms, differentiable, and compiled once for a capacity.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, Int

from micjax.active.acquire.batch import (
    CORNER,
    Allowed,
    Indices,
    LogWeight,
    best_in,
    greedily,
    positive,
    scale_of,
)
from micjax.active.acquire.paths import Paths
from micjax.active.acquire.search import Box
from micjax.active.acquire.values import log_expected_improvement
from micjax.active.gp.observed import capacity_for
from micjax.core.precision import double


def pareto_front(values: Float[ArrayLike, "n k"]) -> Int[np.ndarray, "p"]:
    """The indices of the values that no other one dominates; of equal ones the first.

    **Raises:** `ValueError` for values that are not finite.
    """
    values = _checked(values)
    as_good = np.all(values[:, None] >= values, axis=-1)  # [i, j]: i is nowhere worse than j
    better = as_good & ~as_good.T
    earlier = np.triu(as_good & as_good.T, 1)
    return np.flatnonzero(~np.any(better | earlier, axis=0))


def hypervolume(values: Float[ArrayLike, "n k"], reference: Float[ArrayLike, "k"]) -> float:
    """The volume that dominates the reference and is dominated by the values; exact, k = 2 or 3.

    Values that do not dominate the reference add nothing.

    **Raises:** `ValueError` when none of the values dominates the reference, which then is on the
    wrong side of them, or for other than 2 or 3 objectives.
    """
    values = _checked(values)
    reference = _reference(reference, values.shape[1])
    above = values[np.all(values > reference, axis=1)]
    if not len(above):
        raise ValueError(
            f"none of {len(values)} values dominates the reference {reference.tolist()}; the best "
            f"of each objective is {values.max(axis=0, initial=-np.inf).tolist()}"
        )
    above = above[np.argsort(-above[:, -1])]
    if values.shape[1] == 2:
        return _area(above, reference)
    floors = np.append(above[1:, 2], reference[2])
    slabs = above[:, 2] - floors
    return float(sum(h * _area(above[: i + 1], reference) for i, h in enumerate(slabs) if h > 0.0))


def _area(values: np.ndarray, reference: np.ndarray) -> float:
    """Of the staircase of the first two objectives."""
    across = values[np.argsort(-values[:, 0])]
    heights = np.maximum.accumulate(across[:, 1]) - reference[1]
    return float(np.sum((across[:, 0] - np.append(across[1:, 0], reference[0])) * heights))


# --- the part that is not dominated ------------------------------------------------------------


class Boxes(NamedTuple):
    """Disjoint boxes; some for each draw, or the same for all. Free rows have no volume."""

    lower: Float[Array, "s boxes k"]
    upper: Float[Array, "s boxes k"]  # infinity where nothing bounds


def boxes_beyond(
    fronts: Float[ArrayLike, "s n k"],
    reference: Float[ArrayLike, "k"],
    capacity: int | None = None,
) -> Boxes:
    """Cut what dominates the reference, and no value of a front, into boxes.

    In two dimensions p values of a front make p + 1 boxes, in three at most 2 p + 1 (Yang et al.
    2019): a plane sweeps down the third objective, and the staircase of the first two is cut where
    a value changes it.

    **Arguments:**

    - `fronts`: one for each draw, or one for all; values that are dominated, or do not dominate
        the reference, do not matter.
    - `capacity`: rows of each set; by default a power of two that suffices for n values.

    **Raises:** `ValueError` for values that are not finite, or too small a capacity.
    """
    fronts = np.asarray(fronts, np.float64)
    if fronts.ndim != 3 or not np.isfinite(fronts).all():
        raise ValueError(f"fronts {fronts.shape} are not finite numbers of shape [s, n, k]")
    reference = _reference(reference, fronts.shape[2])
    capacity = _capacity(fronts) if capacity is None else capacity
    lower = np.zeros((len(fronts), capacity, len(reference)))
    upper = np.zeros_like(lower)
    for i, front in enumerate(fronts):
        boxes = _sweep(front[np.all(front > reference, axis=1)], reference)
        if len(boxes) > capacity:
            raise ValueError(f"{len(boxes)} boxes do not fit into a capacity of {capacity}")
        lower[i, : len(boxes)], upper[i, : len(boxes)] = boxes[:, 0], boxes[:, 1]
    return Boxes(lower, upper)


def _capacity(fronts: np.ndarray, extra: int = 0) -> int:
    _, n, k = fronts.shape
    return capacity_for((k - 1) * (n + extra) + 1)


def _sweep(front: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`[boxes, 2, k]`, lower and upper corners."""
    flat = len(reference) == 2
    top, bottom = (0.0, -1.0) if flat else (np.inf, reference[2])
    if flat:  # the staircase as it stands when the plane has passed all values
        front = np.column_stack([front, np.full(len(front), top)])
    # strips [x, x_end] x [y, inf) of what lies beyond the staircase, open below z_top
    strips = [(reference[0], np.inf, reference[1], top)]
    boxes = []

    def close(x, x_end, y, z_top, z):
        if x_end > x and z_top > z:
            boxes.append(((x, y, z), (x_end, np.inf, z_top)))

    for a, b, c in sorted(front.tolist(), key=lambda value: value[::-1], reverse=True):
        cut = [s for s in strips if s[0] < a and s[2] < b]
        if not cut:
            continue  # dominated
        for x, x_end, y, z_top in cut:
            close(x, min(x_end, a), y, z_top, c)
        _, x_end, y, z_top = cut[-1]
        rest = [(a, x_end, y, z_top)] if x_end > a else []
        higher = [s for s in strips if s[2] >= b]
        lower = [s for s in strips if s[2] < b and s[0] >= a]
        strips = [*higher, (cut[0][0], a, b, c), *rest, *lower]
    for strip in strips:
        close(*strip, bottom)
    return np.array(boxes)[:, :, : len(reference)]


# --- the acquisition ---------------------------------------------------------------------------


def log_hypervolume_improvement(
    draws: Float[Array, "s m k"], boxes: Boxes, scale: Float[ArrayLike, "k"]
) -> Float[Array, "m"]:
    """log E[hypervolume that a point adds] over draws of the objectives, for each point.

    E sum_boxes prod_k max(min(f_k, upper_k) - lower_k, 0) (Daulton et al. 2020, eq. 5), the
    corners of max rounded as in `batch.positive` (Ament et al. 2023, section 4).

    **Arguments:**

    - `scale`: a typical size of each objective.
    """
    scale = jnp.asarray(scale)

    def of_draw(draw):
        values, lower, upper = draw
        high = jnp.minimum(values[:, None], upper)
        sides = positive((high - lower) / scale, CORNER)
        real = jnp.all(upper > lower, axis=-1)
        return jnp.sum(jnp.where(real, jnp.prod(sides, axis=-1), 0.0), axis=-1)

    per_draw = jax.tree.map(lambda b: jnp.broadcast_to(b, (len(draws), *b.shape[1:])), boxes)
    # one draw after the other: [s, m, boxes, k] would fill the memory
    gained = jnp.mean(jax.lax.map(of_draw, (draws, *per_draw)), axis=0)
    return jnp.log(gained) + jnp.sum(jnp.log(scale))


_log_improvement = double(eqx.filter_jit(log_hypervolume_improvement))


def log_expected_hypervolume(
    means: Sequence[Float[Array, "states m"]],
    sds: Sequence[Float[Array, "states m"]],
    log_weights: Sequence[Float[Array, "states"]],
    boxes: Boxes,
) -> Float[Array, "m"]:
    """log E[hypervolume that a point adds] where the objectives are independent, exactly.

    Each objective is a mixture of normal numbers, of which each side of a box has the expectation
    E[max(min(f, upper) - lower, 0)] = EI(lower) - EI(upper); the volume is the sum over boxes of
    their products (Emmerich, Deutz & Klinkenberg 2011; Yang et al. 2019), here in logarithms.

    **Arguments:**

    - `means`, `sds`, `log_weights`: of the states of each objective.
    - `boxes`: one set of them, `boxes_beyond` one front.
    """
    lower, upper = boxes.lower[0], boxes.upper[0]
    volume = jnp.zeros((len(lower), means[0].shape[-1]))
    for k, (mean, sd, log_weight) in enumerate(zip(means, sds, log_weights, strict=True)):
        low, high = lower[:, k, None, None], upper[:, k, None, None]
        side = _log_side(mean, sd, low, high) + log_weight[:, None]
        volume = volume + logsumexp(side, axis=1)
    real = jnp.all(upper > lower, axis=-1)
    return logsumexp(jnp.where(real[:, None], volume, -jnp.inf), axis=0)


def _log_side(mean, sd, lower, upper):
    """log E[max(min(f, upper) - lower, 0)] of a normal number."""
    bounded = jnp.isfinite(upper) & (upper > lower)
    end = jnp.where(bounded, upper, lower + 1.0)
    beyond_lower = log_expected_improvement(mean, sd, lower)
    gap = beyond_lower - log_expected_improvement(mean, sd, end)
    rest = jnp.log(-jnp.expm1(-jnp.maximum(gap, jnp.finfo(gap.dtype).tiny)))
    return beyond_lower + jnp.where(bounded, rest, 0.0)


def greedy_hypervolume(
    draws: Float[ArrayLike, "s m k"],
    values: Float[ArrayLike, "n k"],
    reference: Float[ArrayLike, "k"],
    allowed: Allowed,
    count: int,
    log_weight: LogWeight | None = None,
) -> Indices:
    """`count` candidates of high joint expected hypervolume improvement.

    The draws of a chosen candidate join the front of each draw before the next is chosen.

    **Arguments:**

    - `draws`: of the objectives at the candidates, `paths.draw_values` of each in the last axis.
    - `values`: the values so far.
    - `reference`: the least that is of use of each objective.
    - `allowed`, `log_weight`: as in `batch.greedy_improvement`.

    **Raises:** `ValueError` when fewer than `count` candidates are allowed, or a draw is NaN.
    """
    draws = np.asarray(draws, np.float64)
    fronts = _front(values, reference)
    room, scale = _capacity(fronts, count - 1), scale_of(draws)
    return greedily(
        lambda now: _log_improvement(draws, _beyond(now, reference, room, len(draws)), scale),
        lambda now, index: _joined(now, draws[:, index]),
        fronts,
        np.broadcast_to(allowed, draws.shape[1:2]),
        count,
        log_weight,
    )


def greedy_hypervolume_in(
    paths: tuple[Paths, ...],
    values: Float[ArrayLike, "n k"],
    reference: Float[ArrayLike, "k"],
    box: Box,
    key: Array,
    count: int,
    near: Float[Array, "i d"] | None = None,
) -> Float[np.ndarray, "count d"]:
    """`count` points of high joint expected hypervolume improvement in a box.

    **Arguments:**

    - `paths`: draws of each objective, equally many, `paths.draw_paths`.
    - `near`: points about which to look closely, such as those of the front.

    **Raises:** `ValueError` when the paths are finite nowhere in the box.
    """
    fronts = _front(values, reference)
    room, scale = _capacity(fronts, count - 1), scale_of(np.asarray(values, np.float64)[None])
    points = []
    for draw_key in jax.random.split(key, count):
        boxes = _beyond(fronts, reference, room, len(paths[0].weights))
        points.append(best_in(_score, box, draw_key, (paths, boxes, scale), near))
        at = [np.asarray(p(points[-1][None]))[:, 0] for p in paths]
        fronts = _joined(fronts, np.stack(at, axis=-1))
    return np.array(points)


def _score(points: Array, paths: tuple[Paths, ...], boxes: Boxes, scale: Array) -> Array:
    draws = jnp.stack([p(points) for p in paths], axis=-1)
    return log_hypervolume_improvement(draws, boxes, scale)


def _front(values: ArrayLike, reference: ArrayLike) -> Float[np.ndarray, "1 p k"]:
    values = _checked(values)
    values = values[np.all(values > _reference(reference, values.shape[1]), axis=1)]
    return values[pareto_front(values)][None]


def _beyond(fronts: np.ndarray, reference: ArrayLike, capacity: int, draws: int) -> Boxes:
    # repeated for every draw, so that one front and many are the same compiled program
    boxes = boxes_beyond(fronts, reference, capacity)
    return Boxes(*(np.broadcast_to(b, (draws, *b.shape[1:])) for b in boxes))


def _joined(fronts: np.ndarray, new: Float[np.ndarray, "s k"]) -> Float[np.ndarray, "s n k"]:
    fronts = np.broadcast_to(fronts, (len(new), *fronts.shape[1:]))
    return np.concatenate([fronts, new[:, None]], axis=1)


def _checked(values: ArrayLike) -> Float[np.ndarray, "n k"]:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"values {values.shape} are not finite numbers of shape [n, k]")
    return values


def _reference(reference: ArrayLike, objectives: int) -> Float[np.ndarray, "k"]:
    reference = np.asarray(reference, np.float64)
    if objectives not in (2, 3):
        raise ValueError(f"there are {objectives} objectives; 2 or 3 are possible")
    if reference.shape != (objectives,) or not np.isfinite(reference).all():
        raise ValueError(
            f"the reference {reference.tolist()} is not one finite number for each of "
            f"{objectives} objectives"
        )
    return reference
