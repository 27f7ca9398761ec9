"""Maps as rows of pixels."""

import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from micjax.core.names import unknown_name
from micjax.core.problem import InverseProblem, on_edge
from micjax.core.tree import array_of, named_leaves

EDGE = 1e-3  # of what a prior allows: so far from its ends
Given = Mapping[str, ArrayLike]  # the same for all pixels, or [*map, *leaf]
Rows = dict[str, np.ndarray]  # [pixel, *leaf]


def rows(y, shape: tuple[int, ...], first: int, last: int) -> np.ndarray:
    """Pixels first to last of a map, in the order of its axes, with as little as possible read."""
    if len(shape) == 1:
        return _plain(y[first:last])
    row = math.prod(shape[1:])
    low, high = first // row, -(-last // row)
    some = _plain(y[low:high])
    return some.reshape(-1, *some.shape[len(shape) :])[first - low * row : last - low * row]


def _plain(values) -> np.ndarray:
    """What is masked does not count, as NaN."""
    if np.ma.isMaskedArray(values):
        return np.ma.filled(values.astype(float), np.nan)
    return np.asarray(values)


def maps(problem: InverseProblem, values: Given, shape: tuple[int, ...], what: str) -> Rows:
    """By name `[pixel, *leaf]`, from values that are the same for all pixels or `[*map, *leaf]`.

    **Raises:** `ValueError` for a name that is none of the problem, and for another shape.
    """
    leaves = named_leaves({"forward": problem.forward, "noise": problem.noise})
    leaves = {n: array_of(leaf) for n, leaf in leaves.items()}
    out = {}
    for name, value in values.items():
        if name not in leaves:
            raise ValueError(f"{what}: " + unknown_name("array", name, leaves))
        leaf, value = np.shape(leaves[name]), np.asarray(value, jnp.result_type(float))
        if value.shape not in (leaf, shape + leaf):
            raise ValueError(
                f"{what}: {name} of shape {value.shape}; {shape + leaf} or {leaf} is needed"
            )
        out[name] = np.broadcast_to(value, shape + leaf).reshape(-1, *leaf)
    return out


def check_starts(problem: InverseProblem, start: Rows) -> None:
    """**Raises:** `ValueError` for pixels that start outside of a prior or on its edge."""
    for name, prior in problem.unknowns().items():
        allowed = np.asarray(inside(prior, jnp.asarray(start[name])))
        if not allowed.all():
            wrong = np.asarray(start[name])[~allowed]
            raise ValueError(
                f"starts of {name}: {len(wrong)} of {len(allowed)} are not inside of what its "
                f"prior allows ({prior.support}), such as {wrong.ravel()[0]}"
            )


def moved_inside(problem: InverseProblem, start: Given) -> dict[str, np.ndarray]:
    """Guesses `[*map, *leaf]` that a prior does not allow at the nearest place that it does; where
    there is none, the problem's own value. A maximum at the end of an axis is no reason to fit
    nothing."""
    unknowns, own, out = problem.unknowns(), problem.values(), dict(start)
    for name in out.keys() & unknowns.keys():
        support = unknowns[name].support
        support = getattr(support, "base_constraint", support)
        ends = (getattr(support, n, np.inf) for n in ("lower_bound", "upper_bound"))
        low, high = (np.asarray(e, float) for e in ends)
        value = np.asarray(out[name], float)
        if np.isfinite(low).all() and np.isfinite(high).all():
            value = np.clip(value, low + EDGE * (high - low), high - EDGE * (high - low))
        leaf = np.shape(own[name])
        flat = jnp.asarray(value.reshape(-1, *leaf), jnp.result_type(float))
        allowed = np.asarray(inside(unknowns[name], flat)).reshape(
            value.shape[: value.ndim - len(leaf)]
        )
        allowed = allowed.reshape(allowed.shape + (1,) * len(leaf))
        out[name] = np.where(allowed, value, np.asarray(own[name]))
    return out


@eqx.filter_jit
def inside(prior, values):
    """Of each pixel, whether all of its value is inside of what the prior allows."""
    return jax.vmap(lambda v: jnp.all(prior.support(v)) & ~jnp.any(on_edge(prior, v)))(values)
