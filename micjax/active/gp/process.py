"""Gaussian processes as inverse problems: y ~ N(mean(x), kernel(x, x) + noise), in fixed buffers.

`process(...)` makes an `InverseProblem` whose unknowns are the hyper-parameters and, with a
physical model as mean, the physics too; `micjax.laplace`, `nuts` and `svi` take it as it is.
Conditioning, prediction and rank-1 updates are pure functions of a `State`. Data live in buffers of
fixed capacity with a mask, so that one more point compiles nothing. All of it runs in float64.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Int

from micjax.active.gp.algebra import (
    LOST,
    first_jitter,
    gaussian_loss,
    inverse_lower,
    jittered_cholesky,
    masked,
)
from micjax.active.gp.kernels import Kernel, Matern
from micjax.core.problem import InverseProblem, parameter
from micjax.inference.errors.density import in_float64

SMALLEST = 64  # capacity of the first buffers: most loops never need others
SMALLEST_Y = 1e-140  # standard deviation of y; beyond, variances underflow
ROUNDED = 1e-14  # share of the prior variance that rounding may leave of a posterior one

Point = Float[ArrayLike, "d"] | Sequence[float | int]


def double(function: Callable) -> Callable:
    """`function` run in float64, whatever the precision around it; inside a transformation of JAX
    in the precision of that."""

    @functools.wraps(function)
    def in_double(*args, **kwargs):
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            return function(*args, **kwargs)
        with jax.enable_x64(True):
            args, kwargs = in_float64((args, kwargs))
            return function(*args, **kwargs)

    return in_double


# --- the data ----------------------------------------------------------------------------------


class Observed(NamedTuple):
    """Where was measured: the x of a process. Rows that hold no point yet are masked."""

    points: Float[Array, "capacity d"]
    present: Float[Array, "capacity"]  # 1 for a measured point, 0 for a free row
    noise_ratio: Float[Array, "capacity"]  # standard deviation of the noise / noise.sigma


def capacity_for(count: int) -> int:
    """The capacity of the buffers for `count` points: a power of two, at least 64."""
    return max(SMALLEST, 1 << max(count - 1, 0).bit_length())


def buffered(
    points: ArrayLike, y: ArrayLike, noise_ratio: ArrayLike = 1.0, capacity: int | None = None
) -> tuple[Observed, Float[Array, "capacity"]]:
    """Points `[n, d]` and values `[n]` in buffers, as the (x, y) of a process.

    **Raises:** `ValueError` for shapes that do not fit, values that are not finite, a noise ratio
    below 0, or more points than a given capacity.
    """
    # on the host: to cut and fill a growing array on the device compiles for every length
    points, y = np.asarray(points, np.float64), np.asarray(y, np.float64)
    if points.ndim != 2 or y.shape != points.shape[:1]:
        raise ValueError(f"points {points.shape} and y {y.shape} are not of shapes [n, d] and [n]")
    for name, values in {"points": points, "y": y}.items():
        if not np.isfinite(values).all():
            rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
            raise ValueError(f"{name} holds NaN or infinity in rows {rows[:8].tolist()}")
    _check_ratio(noise_ratio)
    count = len(y)
    capacity = capacity_for(count) if capacity is None else capacity
    if count > capacity:
        raise ValueError(f"{count} points do not fit into a capacity of {capacity}")
    # free rows repeat a point: the mean need not have a value at 0
    filled = np.zeros((capacity, points.shape[1])) + (points[0] if count else 0.0)
    filled[:count] = points
    present, values, ratio = np.zeros(capacity), np.zeros(capacity), np.ones(capacity)
    present[:count], values[:count], ratio[:count] = 1.0, y, noise_ratio
    with jax.enable_x64(True):
        to = jnp.asarray
        return Observed(to(filled), to(present), to(ratio)), to(values)


def _check_ratio(noise_ratio: ArrayLike) -> None:
    ratio = np.asarray(noise_ratio, np.float64)
    if not (np.isfinite(ratio).all() and (ratio >= 0.0).all()):
        raise ValueError(f"noise_ratio is {ratio.tolist()}; it has to be finite and not below 0")


# --- the inverse problem -----------------------------------------------------------------------


class Marginal(NamedTuple):
    """The prior of the measured values, which the noise model turns into their distribution."""

    mean: Float[Array, "capacity"]
    covariance: Float[Array, "capacity capacity"]
    observed: Observed


class Constant(eqx.Module):
    """The same mean everywhere."""

    value: Float[Array, ""] = parameter(default=0.0)

    def __call__(self, points: Float[Array, "n d"]) -> Float[Array, "n"]:
        return jnp.broadcast_to(self.value, points.shape[:1])


class Physical(eqx.Module):
    """The forward model of an inverse problem as a mean; it reads points as `reads(points)`."""

    forward: Callable[..., Array]
    reads: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, points: Float[Array, "n d"]) -> Float[Array, "n"]:
        prediction = self.forward(self.reads(points))
        if jnp.shape(prediction) != points.shape[:1]:
            raise ValueError(
                f"the mean predicts {jnp.shape(prediction)} for {points.shape[0]} points; "
                "it has to give one real number for each"
            )
        return prediction


class Process(eqx.Module):
    """A Gaussian process over points in physical units; its kernel sees (x - origin) / span.

    An axis which holds an index for the kernel (of an output, a fidelity, a category) stays as it
    is.
    """

    mean: Callable[[Array], Array]
    kernel: Kernel
    origin: Float[Array, "d"] = parameter()
    span: Float[Array, "d"] = parameter()

    def scaled(self, points: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """What the kernel sees: fractions of the box, but for axes which hold an index."""
        index = self.kernel.index_axes(points.shape[1])
        of_index = np.isin(np.arange(points.shape[1]), sorted(index))
        return jnp.where(of_index, points, (points - self.origin) / self.span)

    def covariance(self, a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
        return self.kernel(self.scaled(a), self.scaled(b))

    def variance(self, a: Float[Array, "n d"]) -> Float[Array, "n"]:
        return self.kernel.diagonal(self.scaled(a))

    def __call__(self, x: Observed) -> Marginal:
        return Marginal(self.mean(x.points), self.covariance(x.points, x.points), x)


class White(eqx.Module):
    """Gaussian noise of standard deviation `sigma` times the ratio of each point."""

    sigma: Float[Array, ""] = parameter()

    def variances(self, x: Observed) -> Float[Array, "n"]:
        return (self.sigma * x.noise_ratio) ** 2

    def __call__(self, prediction: Marginal) -> "MaskedNormal":
        return _noisy(prediction, self.variances(prediction.observed))


class LogLinear(eqx.Module):
    """Heteroscedastic Gaussian noise: sigma exp(slope . (x - origin) / span) times the ratio."""

    sigma: Float[Array, ""] = parameter()
    slope: Float[Array, "d"] = parameter()
    origin: Float[Array, "d"] = parameter()
    span: Float[Array, "d"] = parameter()

    def variances(self, x: Observed) -> Float[Array, "n"]:
        exponent = (x.points - self.origin) / self.span @ self.slope
        return (self.sigma * jnp.exp(exponent) * x.noise_ratio) ** 2

    def __call__(self, prediction: Marginal) -> "MaskedNormal":
        return _noisy(prediction, self.variances(prediction.observed))


def _noisy(prediction: Marginal, variances: Float[Array, "capacity"]) -> "MaskedNormal":
    present = prediction.observed.present
    return MaskedNormal(prediction.mean, prediction.covariance, variances, present)


class MaskedNormal(dist.Distribution):
    """N(mean, covariance + diag(variances)) of the present values; the others do not count."""

    support = dist.constraints.real_vector
    pytree_data_fields = ("loc", "covariance", "variances", "present")

    def __init__(self, mean, covariance, variances, present):
        self.loc, self.covariance = mean, covariance
        self.variances, self.present = variances, present
        super().__init__(batch_shape=(), event_shape=jnp.shape(mean), validate_args=False)

    def _matrix(self):
        return masked(self.covariance, self.variances, self.present)

    def log_prob(self, value):
        residual = self.present * (value - self.loc)
        normalisation = 0.5 * self.present.sum() * jnp.log(2.0 * jnp.pi)
        return -gaussian_loss(self._matrix(), residual) - normalisation

    def sample(self, key, sample_shape=()):
        z = jax.random.normal(key, (*sample_shape, *self.event_shape), self.loc.dtype)
        return self.loc + self.present * (z @ jittered_cholesky(self._matrix())[0].T)


def process(
    lower: ArrayLike | Sequence[float | int],
    upper: ArrayLike | Sequence[float | int],
    *,
    mean: InverseProblem | None = None,
    reads: Callable[[Array], Array] | None = None,
    kernel: Kernel | None = None,
    priors: Mapping[str, dist.Distribution | None] | None = None,
    noise: Callable[[Marginal], MaskedNormal] | None = None,
    y_scale: float = 1.0,
) -> InverseProblem:
    """The inverse problem of a Gaussian process on the box from `lower` to `upper`.

    Unknowns are `forward.kernel.lengthscale` (fractions of the box), `forward.kernel.amplitude` and
    `noise.sigma` (in units of y), and `forward.mean.value`, or those of the physical mean: its
    `forward.f0_kHz` is called `forward.mean.forward.f0_kHz` here, its `noise.sigma` `noise.sigma`.

    **Arguments:**

    - `lower`, `upper`: `[d]`, in the units of the points.
    - `mean`: an inverse problem whose forward model is the mean (a structured process: the kernel
        describes what the physics leaves over).
    - `reads`: what the forward model of `mean` takes, from points `[n, d]`; by default the points
        themselves, or the one column of them.
    - `kernel`: by default Matérn 5/2 with one lengthscale an axis; for another one, give `priors`.
    - `priors`: added to the default ones or in their place; None makes an unknown known.
    - `noise`: by default `White`.
    - `y_scale`: a typical standard deviation of y, the unit of the default priors.

    **Raises:** `ValueError` for an empty box, a `y_scale` whose square is no number, or a prior
    that names nothing.
    """
    if not SMALLEST_Y <= y_scale <= 1.0 / SMALLEST_Y:
        raise ValueError(
            f"y_scale is {y_scale}; it has to be from {SMALLEST_Y} to {1.0 / SMALLEST_Y}, "
            "where a variance is a number: give y in another unit"
        )
    lower, upper = np.atleast_1d(np.asarray(lower, float)), np.atleast_1d(np.asarray(upper, float))
    if lower.shape != upper.shape or lower.ndim != 1 or not np.all(lower < upper):
        raise ValueError(f"the box from {lower.tolist()} to {upper.tolist()} is empty")
    axes = len(lower)
    own = _own_priors(mean, y_scale)
    if kernel is None:
        start = np.exp(np.sqrt(2.0) + 0.5 * np.log(axes) - 2.0)
        kernel = Matern(np.full(axes, start), y_scale)
        # the longer the more axes there are (Hvarfner et al. 2024)
        location = np.sqrt(2.0) + 0.5 * np.log(axes)
        own["forward.kernel.lengthscale"] = dist.LogNormal(location, np.sqrt(3.0))
        own["forward.kernel.amplitude"] = dist.LogNormal(np.log(y_scale), 0.5)
    if noise is None:
        noise = White(0.1 * y_scale)
        own.setdefault("noise.sigma", dist.LogNormal(np.log(0.1 * y_scale), 1.0))
    elif not hasattr(noise, "sigma"):
        own.pop("noise.sigma", None)
    if reads is None:
        reads = _only_column if axes == 1 else _as_they_are
    centre = Constant(0.0) if mean is None else Physical(mean.forward, reads)
    chosen = {**own, **(priors or {})}
    return InverseProblem(
        Process(centre, kernel, lower, upper - lower),
        noise,
        {name: prior for name, prior in chosen.items() if prior is not None},
    )


def _only_column(points: Array) -> Array:
    return points[:, 0]


def _as_they_are(points: Array) -> Array:
    return points


def _own_priors(mean: InverseProblem | None, y_scale: float) -> dict[str, dist.Distribution]:
    if mean is None:
        return {"forward.mean.value": dist.Normal(0.0, y_scale)}
    physics = {n: p for n, p in mean.priors.items() if n.startswith("forward.")}
    noise = {n: p for n, p in mean.priors.items() if n == "noise.sigma"}
    return {f"forward.mean.{n}": p for n, p in physics.items()} | noise


# --- the posterior -----------------------------------------------------------------------------


class State(NamedTuple):
    """A process conditioned on data; K^-1 = root^T root, and white = root (y - mean)."""

    problem: InverseProblem
    observed: Observed
    y: Float[Array, "capacity"]
    root: Float[Array, "capacity capacity"]
    white: Float[Array, "capacity"]
    jitter: Float[Array, ""]  # a share of every variance that had to be added to it; mostly 0

    @property
    def count(self) -> int:
        return int(np.sum(np.asarray(self.observed.present)))

    @property
    def singular(self) -> bool:
        """Whether the matrix could not be factorised as it is, for want of noise."""
        return bool(np.asarray(self.jitter) > 0.0)  # on the host: in any precision around


def conditioned(problem: InverseProblem, observed: Observed, y: Float[Array, "capacity"]) -> State:
    """The posterior of the process at the values of `problem`: the part for inside jit."""
    prior = problem.forward(observed)
    present = observed.present
    matrix = masked(prior.covariance, problem.noise.variances(observed), present)
    factor, jitter = jittered_cholesky(matrix)
    root = inverse_lower(factor)
    return State(problem, observed, y, root, root @ (present * (y - prior.mean)), jitter)


condition = double(eqx.filter_jit(conditioned))


def noise_and_jitter(state: State, x: Observed) -> Float[Array, "n"]:
    """The variances that the state takes for those of independent noise: the part for inside jit.

    The jitter is among them.
    """
    noise = state.problem.noise.variances(x)
    return noise + state.jitter * (state.problem.forward.variance(x.points) + noise)


def _against(state: State, points: Float[Array, "m d"]) -> Float[Array, "capacity m"]:
    """root K(data, points): what the data say of the points."""
    covariance = state.problem.forward.covariance(state.observed.points, points)
    return state.root @ (state.observed.present[:, None] * covariance)


def posterior(
    state: State, points: Float[Array, "m d"]
) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
    """Mean and variance of the function (without noise) at `points`: the part for inside jit."""
    forward = state.problem.forward
    known = _against(state, points)
    prior = forward.variance(points)
    return forward.mean(points) + state.white @ known, _left(prior, jnp.sum(known**2, axis=0))


def _left(prior: Float[Array, "m"], known: Float[Array, "m"]) -> Float[Array, "m"]:
    """prior - known, of which rounding may leave less than nothing."""
    return jnp.maximum(prior - known, ROUNDED * prior)


@double
def predict(
    state: State, points: Float[ArrayLike, "m d"]
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Mean and variance of the function (without noise) at `points`, compiled for each m."""
    return jax.device_get(_posterior(state, jnp.asarray(points)))


_posterior = eqx.filter_jit(posterior)


def joint(
    state: State, points: Float[Array, "m d"]
) -> tuple[Float[Array, "m"], Float[Array, "m m"]]:
    """Mean and full covariance of the function at a few points."""
    forward = state.problem.forward
    known = _against(state, points)
    return (
        forward.mean(points) + state.white @ known,
        forward.covariance(points, points) - known.T @ known,
    )


# --- one more datum ----------------------------------------------------------------------------


@double
def append(state: State, point: Point, y: ArrayLike, noise_ratio: ArrayLike = 1.0) -> State:
    """The state with one more datum, by a rank-1 update, at the same hyper-parameters.

    Full buffers are doubled, which compiles anew and costs a factorisation.

    **Raises:** `ValueError` for a datum that is not finite.
    """
    return _append(with_room(state), *datum(point, y, noise_ratio))


def datum(point: Point, y: ArrayLike, noise_ratio: ArrayLike = 1.0) -> tuple:
    """One datum as arrays, so that no value of it compiles anything.

    **Raises:** `ValueError` for one that is not finite.
    """
    point, y, noise_ratio = (np.asarray(v, np.float64) for v in (point, y, noise_ratio))
    if not (np.isfinite(y).all() and np.isfinite(point).all()):
        raise ValueError(f"the datum {y} at {point.tolist()} is not finite")
    _check_ratio(noise_ratio)
    return point, y, noise_ratio


def appended(state: State, point: Float[Array, "d"], y, noise_ratio) -> State:
    """`append` for inside jit, where buffers cannot grow: of full ones it makes NaN."""
    n = _row(state)
    x = Observed(point[None], jnp.ones(1), jnp.reshape(noise_ratio, (1,)))
    forward = state.problem.forward
    known = _against(state, x.points)[:, 0]
    own = forward.variance(x.points)[0] + noise_and_jitter(state, x)[0]
    square, rounding = own - known @ known, jnp.finfo(own.dtype).eps
    lost = square <= LOST * rounding * own
    least = jnp.maximum(state.jitter, first_jitter(state.root))
    rest = jnp.sqrt(jnp.where(lost, least * own, square))
    row = (-(known @ state.root) / rest).at[n].set(1.0 / rest)
    white = (y - forward.mean(x.points)[0] - known @ state.white) / rest
    observed = Observed(
        state.observed.points.at[n].set(point),
        state.observed.present.at[n].set(1.0),
        state.observed.noise_ratio.at[n].set(noise_ratio),
    )
    full = jnp.where(n < len(state.y), 0.0, jnp.nan)
    return State(
        state.problem,
        observed,
        state.y.at[n].set(y),
        state.root.at[n].set(row),
        state.white.at[n].set(white) + full,
        jnp.where(lost, least, state.jitter),
    )


_append = eqx.filter_jit(appended)


def _row(state: State) -> Int[Array, ""]:
    """The first free row of the buffers."""
    return jnp.sum(state.observed.present).astype(int)


def with_room(state: State, extra: int = 1) -> State:
    """The state in buffers for `extra` more points: the same one, or conditioned in larger ones."""
    if state.count + extra <= len(state.y):
        return state
    return condition(state.problem, *grown(state.observed, state.y, state.count + extra))


def grown(
    observed: Observed, y: Float[Array, "n"], count: int = 0
) -> tuple[Observed, Float[Array, "m"]]:
    """The same data in buffers of twice the capacity, or as much as `count` points need."""
    kept = np.asarray(observed.present) > 0
    points, ratio = np.asarray(observed.points)[kept], np.asarray(observed.noise_ratio)[kept]
    capacity = max(2 * len(kept), capacity_for(count))
    return buffered(points, np.asarray(y)[kept], ratio, capacity=capacity)


# --- a fixed set of candidates -----------------------------------------------------------------


class Tracked(NamedTuple):
    """The posterior at fixed points, kept up to date for O(capacity x points) a datum."""

    state: State
    points: Float[Array, "m d"]
    known: Float[Array, "capacity m"]
    mean: Float[Array, "m"]
    variance: Float[Array, "m"]


def tracked(state: State, points: Float[Array, "m d"]) -> Tracked:
    """`track` for inside jit."""
    forward, known = state.problem.forward, _against(state, points)
    variance = _left(forward.variance(points), jnp.sum(known**2, axis=0))
    return Tracked(state, points, known, forward.mean(points) + state.white @ known, variance)


_track = eqx.filter_jit(tracked)


@double
def track(state: State, points: Float[ArrayLike, "m d"]) -> Tracked:
    """Begin to follow the posterior at `points`."""
    return _track(state, jnp.asarray(points))


@double
def tell(now: Tracked, point: Point, y: ArrayLike, noise_ratio: ArrayLike = 1.0) -> Tracked:
    """The followed posterior with one more datum: `append` for all its points at once."""
    state = with_room(now.state)
    if state is not now.state:
        now = _track(state, now.points)
    return _tell(now, *datum(point, y, noise_ratio))


def told(followed: Tracked, point: Float[Array, "d"], y, noise_ratio) -> Tracked:
    """`tell` for inside jit, where buffers cannot grow: of full ones it makes NaN."""
    state, n, points = followed.state, _row(followed.state), followed.points
    new, forward = appended(state, point, y, noise_ratio), state.problem.forward
    known = _against(state, point[None])[:, 0]
    between = forward.covariance(point[None], points)[0]
    row = new.root[n, n] * (between - known @ followed.known)
    return Tracked(
        new,
        points,
        followed.known.at[n].set(row),
        followed.mean + row * new.white[n],
        jnp.maximum(followed.variance - row**2, ROUNDED * forward.variance(points)),
    )


_tell = eqx.filter_jit(told)
