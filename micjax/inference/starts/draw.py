"""Where an engine starts: dicts of values, of which missing names mean the current values."""

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike

from micjax.core.problem import InverseProblem, Theta, Values, check_start, on_edge


def draw_starts(key: Array, problem: InverseProblem, n: int) -> list[Values]:
    """`n` starts for `fit` or `nuts`: the current values, then draws from the priors.

    An unknown whose prior is improper keeps its current value.
    """
    return [problem.values(), *(_drawn(k, problem) for k in jax.random.split(key, n)[1:])]


def _drawn(key: Array, problem: InverseProblem) -> Values:
    unknowns = problem.unknowns()
    keys = jax.random.split(key, len(unknowns) + 1)  # one too many: there may be no unknowns
    draws = {n: prior_draws(p, k) for k, (n, p) in zip(keys, unknowns.items(), strict=False)}
    values = problem.values()
    inside = {
        n: jnp.where(on_edge(unknowns[n], v), values[n], v)
        for n, v in draws.items()
        if v is not None
    }
    return values | inside


def prior_draws(prior: dist.Distribution, key: Array, shape: tuple[int, ...] = ()) -> Array | None:
    """`shape` draws of `prior`, or None for an improper one, which has only a density."""
    try:
        return _sampled(prior, key, shape)
    except NotImplementedError:
        return None


@eqx.filter_jit
def _sampled(prior: dist.Distribution, key: Array, shape: tuple[int, ...]) -> Array:
    return prior.sample(key, shape)


def stacked_starts(problem: InverseProblem, starts: Sequence[Mapping[str, ArrayLike]]) -> Theta:
    """The starts in unconstrained coordinates, with a leading axis.

    **Raises:** `ValueError` for no start at all, a name that is no unknown, or another shape.
    """
    if not starts:
        raise ValueError("starts is empty; leave it out to start from the current values")
    completed = [_completed(problem, i, s) for i, s in enumerate(starts)]
    for start in completed:
        check_start(problem, start)
    thetas = [problem.unconstrain(start) for start in completed]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)


def started(
    stage: InverseProblem, problem: InverseProblem, i: int, start: Mapping[str, ArrayLike]
) -> InverseProblem:
    """`stage` at the values of start number `i`, which may name unknowns of `problem` that the
    stage holds.

    **Raises:** `ValueError` for any other name, or another shape.
    """
    held = {n: v for n, v in start.items() if n in problem.unknowns()}
    own = {n: v for n, v in start.items() if n not in held or n in stage.unknowns()}
    full = _completed(stage, i, own)
    check_start(stage, full)
    return stage.at(held | full)


def _completed(problem: InverseProblem, i: int, start: Mapping[str, ArrayLike]) -> Values:
    values = problem.values()
    if unknown := sorted(set(start) - set(values)):
        raise ValueError(f"start {i} has {unknown}; the unknowns are {sorted(values)}")
    full = {n: jnp.asarray(start.get(n, v), dtype=v.dtype) for n, v in values.items()}
    for n, v in full.items():
        if v.shape != values[n].shape:
            raise ValueError(f"start {i}: {n!r} has shape {v.shape} instead of {values[n].shape}")
    return full
