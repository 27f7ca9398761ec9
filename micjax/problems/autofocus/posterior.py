"""The posterior of the aberrations in `micjax.problems.autofocus`, mode by mode."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats.qmc
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Values, neg_log_joint
from micjax.inference.checkpoint import StopReason
from micjax.inference.errors.estimates import LaplaceErrors
from micjax.inference.errors.laplace import laplace
from micjax.inference.solve import fit_stages
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.stage import Stage
from micjax.physics.electrons.phase_diversity import KNOBS, Images, ProbeSeries

NAMES = [f"forward.aberrations_A.{knob}" for knob in KNOBS]
Setting = Float[np.ndarray, "3"]

SCREENED, BEGUN, KEPT = 512, 12, 3  # points of the prior, fits from there, and those finished
FIRST_STEPS, STEPS = 12, 60
ROUNDING_A = 1.0  # of float32, in the estimate
NEAR = 10.0  # nats above the best fit, within which another one is a mode of the posterior


def series(
    settings_A: Sequence[Setting] | np.ndarray, images: Sequence[np.ndarray] | np.ndarray
) -> tuple[ProbeSeries, Images]:
    """Images in buffers of 1, 2, 4, 8 ... rows, so that one more compiles nothing."""
    capacity = 1 << (len(images) - 1).bit_length()
    free = capacity - len(images)
    settings_A = np.pad(np.asarray(settings_A, float), ((0, free), (0, 0)))
    y = np.pad(np.asarray(images, float), ((0, free), (0, 0), (0, 0)))
    present = (np.arange(capacity) < len(images)).astype(float)
    x = ProbeSeries(jnp.asarray(settings_A, dtype=float), jnp.asarray(present, dtype=float))
    return x, jnp.asarray(y, dtype=float)


@dataclasses.dataclass(frozen=True)
class PosteriorMode:
    """One explanation of the images, and the Gaussian about it."""

    problem: InverseProblem
    mean_A: Setting
    covariance_A2: Float[np.ndarray, "3 3"]
    weight: float


def modes(
    problem: InverseProblem, x: ProbeSeries, y: Images, starts_A: Sequence[Setting]
) -> list[PosteriorMode]:
    """The modes of the posterior, the heaviest first: fits from the best of many points of the
    prior and from `starts_A`, the best of them finished, each with its Laplace approximation.

    The mirror image of the best start is tried too: one image cannot tell the two apart.
    """
    ended = fit_stages(problem, x, y, fits(problem, x, y, starts_A))
    if ended.stop_reason is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    ranked = sorted(zip(ended.starts_losses, ended.starts_values, strict=True), key=lambda f: f[0])
    return _weighted(ranked, problem, x, y)


def stages(problem: InverseProblem, x: ProbeSeries, y: Images) -> list:
    """The best of many fits, one of them for each image as if that were in focus; Laplace errors.
    See `modes` for all that explain the images."""
    settings_A = np.asarray(x.settings_A)[np.asarray(x.present) > 0]
    return [*fits(problem, x, y, -settings_A), LaplaceErrors()]


def fits(problem: InverseProblem, x: ProbeSeries, y: Images, starts_A) -> list[Stage]:
    """From the best of many points of the prior and from `starts_A`; the best of them finished."""
    points_A = in_prior(problem, SCREENED)
    likely = np.argsort(np.asarray(_losses(jnp.asarray(points_A, dtype=float), problem, x, y)))
    low, high = _limits_A(problem)
    middle, half = 0.5 * (low + high), 0.495 * (high - low)  # the ends are infinitely far
    given_A = np.clip(np.reshape(starts_A, (-1, 3)), middle - half, middle + half)
    begun = [_named(a) for a in [*points_A[likely[:BEGUN]], *given_A]]
    return [
        Stage(LBFGS(), FIRST_STEPS, FIRST_STEPS, starts=lambda *_: begun, keep=KEPT),
        Stage(LBFGS(), FIRST_STEPS, FIRST_STEPS, starts=_with_mirror, keep=KEPT),
        Stage(LBFGS(), STEPS, STEPS),
    ]


def _named(aberrations_A: Setting) -> Values:
    return {n: jnp.asarray(a, float) for n, a in zip(NAMES, aberrations_A, strict=True)}


def _with_mirror(problem, x, y, candidates, key) -> list[Values]:
    best = candidates[0].values
    return [*(c.values for c in candidates), best | {n: -best[n] for n in NAMES}]


def in_prior(problem: InverseProblem, n: int) -> Float[np.ndarray, "n 3"]:
    """Aberrations spread evenly over the prior."""
    low, high = _limits_A(problem)
    return low + (high - low) * scipy.stats.qmc.Halton(3, scramble=False).random(n + 1)[1:]


def _limits_A(problem: InverseProblem) -> tuple[Setting, Setting]:
    priors = [problem.priors[n] for n in NAMES]
    low, high = (np.array([float(getattr(p, end)) for p in priors]) for end in ("low", "high"))
    return low, high


def _weighted(fits, problem: InverseProblem, x: ProbeSeries, y: Images) -> list[PosteriorMode]:
    """The distinct ones among the fits, best first, weighed by their evidence."""
    distinct: list[tuple[float, InverseProblem, Setting, np.ndarray]] = []
    for loss, values in fits:
        mean = np.array([float(values[n]) for n in NAMES])
        close = [np.abs(mean - m) < 3 * np.sqrt(np.diag(c)) for _, _, m, c in distinct]
        if loss > fits[0][0] + NEAR or any(c.all() for c in close):
            continue
        fitted = problem.at(values)
        draws = laplace(fitted, x, y).sample(jax.random.key(0), 256)
        distinct.append(
            (loss, fitted, mean, np.cov([draws[n] for n in NAMES]) + ROUNDING_A**2 * np.eye(3))
        )
    score = np.array([0.5 * np.linalg.slogdet(c)[1] - loss for loss, _, _, c in distinct])
    weights = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
    weighted = [
        PosteriorMode(p, m, c, float(w)) for (_, p, m, c), w in zip(distinct, weights, strict=True)
    ]
    return sorted(weighted, key=lambda mode: -mode.weight)


@eqx.filter_jit
def _losses(points_A: Float[Array, "n 3"], problem: InverseProblem, x: ProbeSeries, y: Images):
    """At each of the points, the other unknowns as they are."""

    def loss(point_A):
        at = problem.at(dict(zip(NAMES, point_A, strict=True)))
        return neg_log_joint(at.unconstrain(at.values()), at, x, y)

    return jax.lax.map(loss, points_A)
