"""Maps as rows of pixels."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from micjax.core.names import unknown_name
from micjax.core.problem import InverseProblem, on_edge
from micjax.core.tree import array_of, named_leaves

Given = Mapping[str, ArrayLike]  # the same for all pixels, or [*map, *leaf]
Rows = dict[str, np.ndarray]  # [pixel, *leaf]


def rows(y, shape: tuple[int, ...], first: int, last: int) -> np.ndarray:
    """Pixels first to last of a map, in the order of its axes, with as little as possible read."""
    if len(shape) == 1:
        return np.asarray(y[first:last])
    row = math.prod(shape[1:])
    low, high = first // row, -(-last // row)
    some = np.asarray(y[low:high])
    return some.reshape(-1, *some.shape[len(shape) :])[first - low * row : last - low * row]


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
        inside = np.asarray(_inside(prior, jnp.asarray(start[name])))
        if not inside.all():
            wrong = np.asarray(start[name])[~inside]
            raise ValueError(
                f"starts of {name}: {len(wrong)} of {len(inside)} are not inside of what its prior "
                f"allows ({prior.support}), such as {wrong.ravel()[0]}"
            )


def _inside(prior, values):
    return jax.vmap(lambda v: jnp.all(prior.support(v)) & ~jnp.any(on_edge(prior, v)))(values)
