"""The Gaussian nearest to the posterior, by stochastic gradients of the evidence lower bound.

    ELBO = E_q[log p(y, theta)] + entropy of q,    theta = mean + L e,  e ~ N(0, 1)

(Kucukelbir et al. 2017, J. Mach. Learn. Res. 18, 1), in the unconstrained coordinates.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from micjax.core.coordinates import Coordinates
from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem, check_data
from micjax.core.progress import progress, until_interrupted
from micjax.inference.errors.density import potential
from micjax.inference.errors.nuts import Posterior
from micjax.inference.finite import NonFiniteError, non_finite

GUIDES = ("multivariate", "normal")
FIRST_WIDTH = 0.1  # of q, in the unconstrained coordinates
CHUNK = 100  # steps in one compiled call
_MOMENTS = optax.scale_by_adam()


def svi(
    problem: InverseProblem,
    x,
    y,
    key: Array,
    *,
    steps: int = 2000,
    learning_rate: float = 1e-2,
    samples: int = 500,
    guide: str = "normal",
) -> Posterior:
    """The Gaussian nearest to the posterior in the unconstrained coordinates, in float64.

    It starts at the current values. Its spread is a lower bound where unknowns are correlated and
    `guide` is `"normal"`. Ctrl-C returns what there is. Compiled once for each set of shapes.

    **Arguments:**

    - `learning_rate`: of Adam at first; it falls to nothing as half a cosine, and with it the
        noise of the estimates.
    - `guide`: `"normal"` (independent) or `"multivariate"` (with all correlations).

    **Returns:** a `Posterior` of one chain of `samples` draws, with `.losses` (nats).

    **Raises:** `ValueError` for another guide; `NonFiniteError` when the bound is lost.
    """
    if guide not in GUIDES:
        raise ValueError(f"guide {guide!r}; there are {list(GUIDES)}")
    with jax.enable_x64(True):
        problem, x, y = in_float64((problem, x, y))
        check_data(problem, x, y)
        descent_key, draw_key = jax.random.split(key)
        mean = Coordinates(problem).vector()
        log_width = jnp.full_like(mean, np.log(FIRST_WIDTH))
        below = jnp.zeros((mean.size, mean.size) if guide == "multivariate" else (0, 0))
        q = (mean, log_width, below)
        state, losses = (q, _MOMENTS.init(q), jnp.asarray(0)), [np.empty(0)]
        rate, all_steps = jnp.asarray(learning_rate, float), jnp.asarray(float(steps))
        with until_interrupted(), progress("svi", steps) as show:
            while (done := sum(map(len, losses))) < steps:
                count = min(CHUNK, steps - done)
                state, bounds = _advance(state, problem, x, y, descent_key, rate, all_steps, count)
                losses.append(np.asarray(bounds))
                if not np.isfinite(losses[-1][-1]):
                    fault = non_finite(problem.unconstrain(problem.values()), problem, x, y)
                    raise NonFiniteError(
                        f"the bound is not finite after {done + count} steps (try a smaller "
                        f"learning_rate); at the start: {fault}"
                    )
                show(done + count, f"loss {losses[-1][-1]:.6g}")
        draws = jax.device_get(_draws(state[0], problem, draw_key, samples))
    return Posterior({n: d[None] for n, d in draws.items()}, losses=np.concatenate(losses))


def _root(q) -> Array:
    """L of the covariance L L^T: its diagonal, or the whole of it."""
    _, log_width, below = q
    width = jnp.exp(log_width)
    if below.size == 0:
        return width
    return width[:, None] * (jnp.eye(width.size) + jnp.tril(below, -1))


def _point(q, noise):
    root = _root(q)
    return q[0] + (root * noise if root.ndim == 1 else root @ noise)


@eqx.filter_jit
def _advance(state, problem: InverseProblem, x, y, key, rate, steps: Array, count: int):
    """`count` steps of Adam -> the state and minus the bound at each."""
    coordinates = Coordinates(problem)

    def bound(q, noise):
        entropy = jnp.sum(q[1]) + 0.5 * q[1].size * (1.0 + jnp.log(2.0 * jnp.pi))
        return potential(coordinates.theta(_point(q, noise)), problem, x, y) - entropy

    def step(state, _):
        q, moments, i = state
        noise = jax.random.normal(jax.random.fold_in(key, i), q[0].shape)
        loss, slope = jax.value_and_grad(bound)(q, noise)
        direction, moments = _MOMENTS.update(slope, moments)
        now = 0.5 * rate * (1.0 + jnp.cos(jnp.pi * i / steps))
        q = jax.tree.map(lambda a, d: a - now * d, q, direction)
        return (q, moments, i + 1), loss

    return jax.lax.scan(step, state, length=count)


@eqx.filter_jit
def _draws(q, problem: InverseProblem, key, samples: int):
    noise = jax.random.normal(key, (samples, q[0].size))
    coordinates = Coordinates(problem)
    return jax.vmap(lambda e: coordinates.values(_point(q, e)))(noise)
