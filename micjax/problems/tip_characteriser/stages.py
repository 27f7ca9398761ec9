"""How `micjax.problems.tip_characteriser` is solved: where fits and chains begin."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from micjax.core.coordinates import Coordinates
from micjax.core.problem import InverseProblem, Values
from micjax.inference.errors.estimates import NUTS
from micjax.inference.errors.laplace import laplace
from micjax.inference.solve import Fit
from micjax.inference.solvers.first_order import Adam
from micjax.inference.stage import Stage
from micjax.inference.starts.draw import draw_starts

NEAR = 5.0  # nats above the best loss, within which another end point is as good an explanation
SPREAD = 3.0  # chains start so many Laplace standard deviations about where the fits ended


def stages(
    problem: InverseProblem,
    x: Int[Array, " n"],
    y: Float[Array, "n ny nx"],
    *,
    draws: int = 256,
    starts: int = 12,
    steps: int = 600,
    chains: int = 4,
    samples: int = 500,
    warmup: int = 500,
) -> list:
    """Fits from everywhere, then chains about the best of them.

    **Arguments:**

    - `draws`: how many points to draw from the priors.
    - `starts`: how many fits side by side: from the given values, and from those draws with the
        smallest residual.
    - `steps`: of each fit.
    - `chains`: how many chains; 0 for the fits alone.
    - `samples`: draws of each chain after the warm-up.
    - `warmup`: transitions of each chain before them.
    """

    def screened(problem, x, y, candidates, key):
        return screened_starts(key, problem, x, y, draws, starts)

    sampled = [NUTS(samples, warmup, chains, starts=spread_starts)] if chains else []
    return [Stage(Adam(0.1, steps), steps, starts=screened, together=True), *sampled]


def screened_starts(key: Array, problem: InverseProblem, x, y, draws: int, n: int) -> list[Values]:
    """The given values, and those `n` - 1 of `draws` points of the priors with the smallest
    residual: most of the others lead into wrong basins.

    Each starts with the noise that its residual looks like: with less, the misfit of a wrong tip
    would be steeper than any step.
    """
    keys = jax.random.split(key, max(draws, n))
    points, rms = _drawn(keys, problem, x, y)
    chosen = np.argsort(np.asarray(rms))[: n - 1]  # NaN comes last
    drawn = [_with_noise({name: v[i] for name, v in points.items()}, rms[i]) for i in chosen]
    return [problem.values(), *drawn]


def _with_noise(point: Values, rms) -> Values:
    return point | {n: jnp.full_like(v, rms) for n, v in point.items() if n == "noise.sigma"}


@eqx.filter_jit
def _drawn(keys: Array, problem: InverseProblem, x, y) -> tuple[Values, Float[Array, " n"]]:
    """Points of the priors, one a key, and the rms of the residual there."""

    def point(key):
        # the second of two starts, the first is always the given values
        values = draw_starts(key, problem, 2)[1]
        return values, jnp.sqrt(jnp.mean((y - problem.at(values).forward(x)) ** 2))

    return jax.lax.map(point, keys)


def best_basin(fit: Fit) -> Bool[np.ndarray, " starts"]:
    """Which starts ended within `NEAR` nats of the best; the others are in wrong basins."""
    return fit.starts_losses <= fit.starts_losses.min() + NEAR


def spread_starts(fit: Fit, x, y, key: Array, n: int) -> list[Values]:
    """`n` points wider apart than the posterior, about the ends of the good fits in turn.

    Draws of the Laplace approximation at the best one, `SPREAD` times as wide.
    """
    curvature = laplace(fit.problem, x, y)
    good = best_basin(fit)
    ends = [v for v, is_good in zip(fit.starts_values, good, strict=True) if is_good]
    coordinates, drawn = Coordinates(fit.problem, curvature.names), []
    for i, k in enumerate(jax.random.split(key, n)):
        end = fit.problem.unconstrain(ends[i % len(ends)])
        about = dataclasses.replace(
            curvature,
            mean=np.asarray(coordinates.vector(end), float),
            covariance=SPREAD**2 * curvature.covariance,
        )
        drawn.append({name: jnp.asarray(v[0]) for name, v in about.sample(k, 1).items()})
    return drawn
