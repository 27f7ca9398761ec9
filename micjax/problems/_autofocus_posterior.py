"""The posterior of the aberrations in `micjax.problems.autofocus`, mode by mode."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats.qmc
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, neg_log_joint
from micjax.inference.laplace import laplace
from micjax.inference.lbfgs import lbfgs, named
from micjax.physics.phase_diversity import KNOBS, Images, Series

NAMES = [f"forward.aberrations_A.{knob}" for knob in KNOBS]
Setting = Float[np.ndarray, "3"]

SCREENED, BEGUN, KEPT = 512, 12, 3  # points of the prior, fits from there, and those finished
FIRST_STEPS, STEPS = 12, 60
ROUNDING_A = 1.0  # of float32, in the estimate
NEAR = 10.0  # nats above the best fit, within which another one is a mode of the posterior


def series(
    settings_A: Sequence[Setting] | np.ndarray, images: Sequence[np.ndarray] | np.ndarray
) -> tuple[Series, Images]:
    """Images in buffers of 1, 2, 4, 8 ... rows, so that one more compiles nothing."""
    capacity = 1 << (len(images) - 1).bit_length()
    free = capacity - len(images)
    settings_A = np.pad(np.asarray(settings_A, float), ((0, free), (0, 0)))
    y = np.pad(np.asarray(images, float), ((0, free), (0, 0), (0, 0)))
    present = (np.arange(capacity) < len(images)).astype(float)
    x = Series(jnp.asarray(settings_A, dtype=float), jnp.asarray(present, dtype=float))
    return x, jnp.asarray(y, dtype=float)


@dataclasses.dataclass(frozen=True)
class Mode:
    """One explanation of the images, and the Gaussian about it."""

    problem: InverseProblem
    mean_A: Setting
    covariance_A2: Float[np.ndarray, "3 3"]
    weight: float


def modes(problem: InverseProblem, x: Series, y: Images, starts_A: Sequence[Setting]) -> list[Mode]:
    """The modes of the posterior, the heaviest first: fits from the best of many points of the
    prior and from `starts_A`, the best of them finished, each with its Laplace approximation.

    The mirror image of the best start is tried too: one image cannot tell the two apart.
    """
    everywhere = _unconstrained(problem, jnp.asarray(in_prior(problem, SCREENED), dtype=float))
    likely = np.argsort(np.asarray(_losses(everywhere, problem, x, y)))[:BEGUN]
    low, high = _limits_A(problem)
    given_A = np.clip(np.reshape(starts_A, (-1, 3)), 0.99 * low, 0.99 * high)  # the ends are far
    given = _unconstrained(problem, jnp.asarray(given_A, dtype=float))
    begun = [lbfgs(theta, problem, x, y, FIRST_STEPS) for theta in [*everywhere[likely], *given]]
    turned = _unconstrained(problem, -_physical(_best(begun, 1)[0][1][None], problem))
    begun.append(lbfgs(turned[0], problem, x, y, FIRST_STEPS))
    ended = [lbfgs(theta, problem, x, y, STEPS) for _, theta in _best(begun, KEPT)]
    return _weighted(_best(ended, KEPT), problem, x, y)


def in_prior(problem: InverseProblem, n: int) -> Float[np.ndarray, "n 3"]:
    """Aberrations spread evenly over the prior."""
    low, high = _limits_A(problem)
    return low + (high - low) * scipy.stats.qmc.Halton(3, scramble=False).random(n + 1)[1:]


def _limits_A(problem: InverseProblem) -> tuple[Setting, Setting]:
    priors = [problem.priors[n] for n in NAMES]
    low, high = (np.array([float(getattr(p, end)) for p in priors]) for end in ("low", "high"))
    return low, high


def _best(fits, n: int):
    return sorted(fits, key=lambda fit: fit[0])[:n]


def _weighted(fits, problem: InverseProblem, x: Series, y: Images) -> list[Mode]:
    """The distinct ones among the fits, best first, weighed by their evidence."""
    found: list[tuple[float, InverseProblem, Setting, np.ndarray]] = []
    for loss, theta in fits:
        mean = np.asarray(_physical(theta[None], problem)[0], float)
        close = [np.abs(mean - m) < 3 * np.sqrt(np.diag(c)) for _, _, m, c in found]
        if loss > fits[0][0] + NEAR or any(c.all() for c in close):
            continue
        fitted = problem.at(problem.constrain(named(theta, problem)))
        draws = laplace(fitted, x, y).sample(jax.random.key(0), 256)
        found.append(
            (loss, fitted, mean, np.cov([draws[n] for n in NAMES]) + ROUNDING_A**2 * np.eye(3))
        )
    score = np.array([0.5 * np.linalg.slogdet(c)[1] - loss for loss, _, _, c in found])
    weights = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
    made = [Mode(p, m, c, float(w)) for (_, p, m, c), w in zip(found, weights, strict=True)]
    return sorted(made, key=lambda mode: -mode.weight)


@eqx.filter_jit
def _losses(thetas, problem: InverseProblem, x: Series, y: Images):
    return jax.lax.map(lambda t: neg_log_joint(named(t, problem), problem, x, y), thetas)


@eqx.filter_jit
def _unconstrained(problem: InverseProblem, starts_A: Float[Array, "n 3"]):
    """Flat unconstrained vectors of the problem with these aberrations."""

    def one(start_A):
        values = problem.values() | dict(zip(NAMES, start_A, strict=True))
        return ravel_pytree(problem.unconstrain(values))[0]

    return jax.vmap(one)(starts_A)


@eqx.filter_jit
def _physical(thetas, problem: InverseProblem) -> Float[Array, "n 3"]:
    """The aberrations of flat unconstrained vectors."""

    def one(theta):
        values = problem.constrain(named(theta, problem))
        return jnp.stack([values[n] for n in NAMES])

    return jax.vmap(one)(thetas)
