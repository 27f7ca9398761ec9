"""Damped Gauss-Newton of many small fits side by side, each of which ends by itself.

Unknowns that enter linearly need no start: after each step of the others the best of them are
solved for, and only then is the step judged (variable projection, Golub and Pereyra 1973).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from micjax.core.problem import Values
from micjax.inference.maps.cholesky import factor, scaled, solved
from micjax.inference.maps.equations import NormalEquations, Pixel, any_data, equations
from micjax.inference.solvers.driver import CONVERGED, NON_FINITE, RUNNING, STALLED
from micjax.inference.solvers.laws import DataLaw

FIRST_DAMPING, TRUSTED, LARGEST_DAMPING = 1e-2, 0.1, 1e7
EMPTY = 4  # beside what the driver knows


class Pace(NamedTuple):
    """Where each pixel is, and how it goes on."""

    flat: Float[Array, "d b"]
    damping: Float[Array, " b"]
    ended: Int[Array, " b"]  # RUNNING and so on
    last: Bool[Array, " b"]  # whether the next step is expected to be the last one
    steps: Int[Array, " b"]
    loss: Float[Array, " b"]


def begun(flat: Float[Array, "d b"]) -> Pace:
    b = flat.shape[1:]
    zero = jnp.zeros(b, jnp.int32)
    return Pace(
        flat, jnp.full(b, FIRST_DAMPING, flat.dtype), zero, zero > 0, zero, jnp.full(b, jnp.inf)
    )


def descended(
    pixel: Pixel, law: DataLaw, known: Values, y: Float[Array, "n b"], pace: Pace, most, tolerance
) -> Pace:
    """Until all have ended, or `most` steps.

    A pixel has converged when the step that was taken last had been expected to gain less than
    `tolerance` nats, in noise of the size that is there.
    """
    d, b = pace.flat.shape
    leaps = jnp.asarray(pixel.leaps(), pace.flat.dtype)[:, None]
    points = jnp.isfinite(y).sum(axis=0)
    nothing = jnp.zeros((d * (d + 1) // 2, b), pace.flat.dtype)
    nowhere = NormalEquations(jnp.full(b, jnp.inf), jnp.zeros(b), jnp.zeros((d, b)), nothing)

    looks = 2 if pixel.linear else 1  # at the model, in one step

    def going(state) -> Bool[Array, ""]:
        count, pace, _, _ = state
        return (count < looks * (most + 1)) & (pace.ended == RUNNING).any()

    def look(state):
        count, pace, here, ahead = state
        there = equations(pixel, law, known, y, ahead)
        if not pixel.linear:
            return judged(count, pace, here, ahead, there)
        return jax.lax.cond(
            count % 2 == 0,
            lambda: (count + 1, pace, here, _linear_solved(pixel, ahead, there)),
            lambda: judged(count, pace, here, ahead, there),
        )

    def judged(count, pace, here, ahead, there):
        running, first = pace.ended == RUNNING, count < looks
        finite = jnp.isfinite(there.loss) & jnp.isfinite(there.slope).all(axis=0)
        better = running & finite & (there.loss <= here.loss)
        eased = jnp.where(better, 0.1 * pace.damping, 10.0 * pace.damping)
        damping = jnp.where(running & ~first, jnp.maximum(eased, 1e-9), pace.damping)
        here = NormalEquations(*(jnp.where(better, a, b) for a, b in zip(there, here, strict=True)))
        flat = jnp.where(better, ahead, pace.flat)

        # the step to here was the last one that was worth its while
        ended = jnp.where(pace.last, CONVERGED, RUNNING)
        ended = jnp.where(damping > LARGEST_DAMPING, STALLED, ended)
        ended = jnp.where(first & ~finite, NON_FINITE, ended)
        matrix, scale = scaled(here.curvature, d)
        move, gain = solved(factor(matrix, d, damping), scale * here.slope)
        move = scale * move
        shorter = jnp.maximum(jnp.max(jnp.abs(move) / leaps, axis=0), 1.0)
        # noise that is smaller than it is said to be wants a better fit
        excess = jnp.clip(here.chi_squared / jnp.maximum(points - d, 1), 1e-6, 1.0)
        small = (0.5 * gain < tolerance * excess) & (damping <= TRUSTED) & (shorter <= 1.0)
        pace = Pace(
            flat,
            damping,
            jnp.where(running, ended, pace.ended),
            jnp.where(running, small, pace.last),
            pace.steps + (running & ~first),
            here.loss,
        )
        return count + 1, pace, here, flat - move / shorter

    ended = jnp.where(any_data(y), pace.ended, EMPTY)
    start = (jnp.zeros((), jnp.int32), pace._replace(ended=ended), nowhere, pace.flat)
    return jax.lax.while_loop(going, look, start)[1]


def _linear_solved(pixel: Pixel, flat: Float[Array, "d b"], there: NormalEquations):
    """The best linear unknowns with the others as they are."""
    where, logarithms = pixel.linear_ones()
    rows, columns = np.tril_indices(len(flat))
    block = np.flatnonzero(np.isin(rows, where) & np.isin(columns, where))
    matrix, scale = scaled(there.curvature[block], len(where))
    move = -scale * solved(factor(matrix, len(where)), scale * there.slope[where])[0]
    # d of a logarithm is the change relative to what is there; what would be negative gets small
    move = jnp.where(logarithms[:, None], jnp.log1p(jnp.maximum(move, -0.9)), move)
    return flat.at[where].add(jnp.where(jnp.isfinite(move), move, 0.0))
