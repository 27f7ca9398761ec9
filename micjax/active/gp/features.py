"""Processes of many points: m features instead of a covariance, y ~ N(mean, F F^T + noise).

The features belong to inducing points (`sparse`; Titsias 2009) or are random waves (`fourier`;
Rahimi & Recht 2007). Both take the inverse problem of a process and give one with the same
unknowns, which every engine takes, and `gp.condition`, `gp.predict` and `gp.append`; work grows as
n m^2, and after that a datum costs m^3.
"""

from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float

from micjax.active.gp.algebra import first_jitter, inverse_lower
from micjax.active.gp.process import (
    LogLinear,
    Observed,
    Process,
    White,
    double,
)
from micjax.core.problem import InverseProblem, parameter

JITTER = 1e-9  # of the inducing values: a smaller one costs digits of the derivative, 1e-16 / it

# --- the inverse problem -----------------------------------------------------------------------


class FeatureMarginal(NamedTuple):
    """The prior of the measured values as features of variance 1 each."""

    mean: Float[Array, "capacity"]
    features: Float[Array, "capacity m"]
    left_out: Float[Array, "capacity"]  # variance of the process that the features do not carry
    observed: Observed


class Features(Process):
    """A process that is a sum of m features of independent standard normal weights."""

    @abstractmethod
    def features(self, points: Float[Array, "n d"]) -> Float[Array, "n m"]:
        """The features at `points`, in the units of y."""

    def left_out(
        self, points: Float[Array, "n d"], features: Float[Array, "n m"]
    ) -> Float[Array, "n"]:
        """The variance of the process less that of the features."""
        return jnp.maximum(self.variance(points) - jnp.sum(features**2, axis=1), 0.0)

    def __call__(self, x: Observed) -> FeatureMarginal:
        features = self.features(x.points)
        return FeatureMarginal(self.mean(x.points), features, self.left_out(x.points, features), x)

    def solved(self, problem: InverseProblem, observed: Observed, y: Array) -> "FeatureState":
        data = equations(self(observed), problem.noise.variances(observed), y)
        root = inverse_lower(_factor(data.gram))
        return FeatureState(problem, observed, y, data.gram, data.seen, root)


class Inducing(Features):
    """The process as far as its values at `inducing` points tell it: F F^T = K_fu K_uu^-1 K_uf.

    These values are seen through noise of a share `JITTER` of their variance. The bound stays a
    bound, lower by 0.03 nats at 200 data of noise 1e-3; the derivative of a factor needs it.
    """

    inducing: Float[Array, "m d"] = parameter()  # in the units of the points

    def features(self, points):
        own = self.covariance(self.inducing, self.inducing)
        share = max(JITTER, 10.0 * first_jitter(own))
        factor = jnp.linalg.cholesky(own + share * jnp.diag(jnp.diag(own)))
        return solve_triangular(factor, self.covariance(self.inducing, points), lower=True).T


class Fourier(Features):
    """The process as a sum of `count` random waves of the kernel's spectrum, drawn by `key`."""

    key: Array
    count: int = eqx.field(static=True)

    def features(self, points):
        return self.kernel.features(self.key, self.count)(self.scaled(points))

    def left_out(self, points, features):
        return jnp.zeros(len(points), features.dtype)  # the waves are the process


class _OfFeatures:
    """A noise model of `gp` on features: the same fields, so the same names."""

    def __call__(self, prediction: FeatureMarginal) -> "FeatureNormal":
        return FeatureNormal(prediction, self.variances(prediction.observed))


class FeatureWhite(_OfFeatures, White):
    """`gp.White` on features."""


class FeatureLogLinear(_OfFeatures, LogLinear):
    """`gp.LogLinear` on features."""


def sparse(problem: InverseProblem, inducing: Float[ArrayLike, "m d"]) -> InverseProblem:
    """The process of `problem` through inducing points, with the bound of Titsias (2009, eq. 9) as
    its likelihood: never above the exact one.

    **Arguments:**

    - `inducing`: in the units of the points; `spread_out` chooses them.

    **Raises:** `ValueError` for a noise model other than `gp.White` and `gp.LogLinear`.
    """
    p = problem.forward
    forward = Inducing(p.mean, p.kernel, p.origin, p.span, jnp.asarray(inducing))
    return InverseProblem(forward, _noise(problem), problem.priors)


def fourier(problem: InverseProblem, key: Array, count: int) -> InverseProblem:
    """The process of `problem` as about `count` random waves; the error falls as 1 / sqrt(count).

    **Raises:** `ValueError` for a kernel without a spectrum, or another noise model than `gp.White`
    and `gp.LogLinear`.
    """
    p = problem.forward
    forward = Fourier(p.mean, p.kernel, p.origin, p.span, key, count)
    jax.eval_shape(forward.features, p.origin[None])  # a kernel without a spectrum says so here
    return InverseProblem(forward, _noise(problem), problem.priors)


def _noise(problem: InverseProblem) -> eqx.Module:
    noise = problem.noise
    if type(noise) is White:
        return FeatureWhite(noise.sigma)
    if type(noise) is LogLinear:
        return FeatureLogLinear(noise.sigma, noise.slope, noise.origin, noise.span)
    raise ValueError(f"the noise is {type(noise).__name__}; features know White and LogLinear")


@double
@eqx.filter_jit
def spread_out(
    problem: InverseProblem, points: Float[ArrayLike, "n d"], count: int
) -> Float[Array, "count d"]:
    """`count` of the points, each where the ones before leave the most variance of the process.

    A pivoted Cholesky factorisation at the present hyper-parameters (Burt et al. 2020, sec. 4.2).

    **Raises:** `ValueError` for fewer points than `count`.
    """
    points = jnp.asarray(points)
    if len(points) < count:
        raise ValueError(f"{count} inducing points are wanted of {len(points)} points")
    forward = problem.forward
    variance = forward.variance(points)

    def choose(k, carry):
        rows, left, chosen, free = carry
        i = jnp.argmax(jnp.where(free, left, -jnp.inf))  # never the same one twice
        row = forward.covariance(points[i][None], points)[0] - rows[:, i] @ rows
        row = row / jnp.sqrt(jnp.maximum(left[i], JITTER * variance[i]))
        left = jnp.maximum(left - row**2, 0.0)
        return rows.at[k].set(row), left, chosen.at[k].set(i), free.at[i].set(False)

    start = jnp.zeros((count, len(points))), variance, jnp.zeros(count, int), variance >= 0.0
    return points[jax.lax.fori_loop(0, count, choose, start)[2]]


# --- linear algebra ----------------------------------------------------------------------------


class Equations(NamedTuple):
    """The data as seen by the weights of the features, in units of the noise."""

    gram: Float[Array, "m m"]  # A^T A, A = F / noise
    seen: Float[Array, "m"]  # A^T r
    residual: Float[Array, "capacity"]  # r = (y - mean) / noise


def equations(prediction: FeatureMarginal, variances, y) -> Equations:
    weight = prediction.observed.present / jnp.sqrt(variances)
    rows = weight[:, None] * prediction.features
    residual = weight * (y - prediction.mean)
    return Equations(rows.T @ rows, rows.T @ residual, residual)


def _factor(gram: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """The Cholesky factor of the precision 1 + A^T A of the weights."""
    return jnp.linalg.cholesky(gram + jnp.eye(len(gram), dtype=gram.dtype))


class FeatureNormal(dist.Distribution):
    """log N(y; mean, F F^T + noise) - sum(left out / noise) / 2, of the present values.

    The last term makes it the bound of Titsias (2009, eq. 9); where nothing is left out it is the
    density itself. By the lemmas of Woodbury and of the determinant, with an m x m factor.
    """

    support = dist.constraints.real_vector
    pytree_data_fields = ("prediction", "variances")

    def __init__(self, prediction: FeatureMarginal, variances: Float[Array, "capacity"]):
        self.prediction, self.variances = prediction, variances
        shape = jnp.shape(prediction.mean)
        super().__init__(batch_shape=(), event_shape=shape, validate_args=False)

    def log_prob(self, value):
        data = equations(self.prediction, self.variances, value)
        factor = _factor(data.gram)
        white = solve_triangular(factor, data.seen, lower=True)
        each = jnp.log(2.0 * jnp.pi * self.variances) + self.prediction.left_out / self.variances
        return (
            -0.5 * (data.residual @ data.residual - white @ white)
            - jnp.sum(jnp.log(jnp.diag(factor)))
            - 0.5 * jnp.sum(self.prediction.observed.present * each)
        )


# --- the posterior -----------------------------------------------------------------------------


class FeatureState(NamedTuple):
    """A `gp.State` by features; root^T root is the covariance of their weights."""

    problem: InverseProblem
    observed: Observed
    y: Float[Array, "capacity"]
    gram: Float[Array, "m m"]
    seen: Float[Array, "m"]
    root: Float[Array, "m m"]

    @property
    def count(self) -> int:
        return self.observed.measured

    @property
    def singular(self) -> bool:
        """The precision of the weights has a factor whatever the noise."""
        return False

    def posterior(self, points: Float[Array, "m d"]) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
        forward = self.problem.forward
        features = forward.features(points)
        known = features @ self.root.T
        mean = forward.mean(points) + known @ (self.root @ self.seen)
        return mean, forward.left_out(points, features) + jnp.sum(known**2, axis=1)

    def with_datum(self, point: Float[Array, "d"], y, noise_ratio) -> "FeatureState":
        problem, x = self.problem, Observed.at(point[None], noise_ratio)
        new = equations(problem.forward(x), problem.noise.variances(x), jnp.reshape(y, (1,)))
        gram, seen = self.gram + new.gram, self.seen + new.seen
        observed, y = (
            self.observed.with_point(point, noise_ratio),
            self.y.at[self.observed.free_row].set(y),
        )
        return FeatureState(problem, observed, y, gram, seen, inverse_lower(_factor(gram)))
