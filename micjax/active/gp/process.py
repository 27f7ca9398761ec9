"""Gaussian processes as inverse problems: y ~ N(mean(x), kernel(x, x) + noise), in fixed buffers.

`process(...)` makes an `InverseProblem` whose unknowns are the hyper-parameters and, with a
physical model as mean, the physics too; `micjax.laplace`, `nuts` and `svi` take it as it is.
Conditioning, prediction and updates by one datum are pure functions of a `State`, or of what else
the forward model is solved by (`features`). Data live in buffers of fixed capacity with a mask, so
that one more point compiles nothing. All of it runs in float64.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from micjax.active.gp.algebra import (
    LOST,
    first_jitter,
    inverse_lower,
    jittered_cholesky,
    masked,
)
from micjax.active.gp.kernels import Kernel, Matern
from micjax.active.gp.noise import LogLinear as LogLinear
from micjax.active.gp.noise import Marginal, MaskedNormal, White
from micjax.active.gp.observed import Observed, Point, datum, grown
from micjax.active.gp.observed import buffered as buffered
from micjax.core.precision import double
from micjax.core.problem import InverseProblem, parameter

SMALLEST_Y = 1e-140  # standard deviation of y; beyond, variances underflow
ROUNDED = 1e-14  # share of the prior variance that rounding may leave of a posterior one

# --- the inverse problem -----------------------------------------------------------------------


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
        """What the kernel sees: fractions of the box, but for axes which hold an index.

        **Raises:** `ValueError` for points that have not as many numbers as the box has axes.
        """
        if points.ndim != 2 or points.shape[1] != len(self.origin):
            wanted = f"[n, {len(self.origin)}], one row for each"
            raise ValueError(f"points of shape {points.shape}; they have to be {wanted}")
        index = self.kernel.index_axes(points.shape[1])
        of_index = np.isin(np.arange(points.shape[1]), sorted(index))
        return jnp.where(of_index, points, (points - self.origin) / self.span)

    @eqx.filter_jit
    def covariance(self, a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
        return self.kernel(self.scaled(a), self.scaled(b))

    def variance(self, a: Float[Array, "n d"]) -> Float[Array, "n"]:
        return self.kernel.diagonal(self.scaled(a))

    def __call__(self, x: Observed) -> Marginal:
        return Marginal(self.mean(x.points), self.covariance(x.points, x.points), x)

    def solved(self, problem: InverseProblem, observed: Observed, y: Array) -> "State":
        """The posterior of `problem`, whose forward model this is, by linear algebra that suits it:
        the part for inside jit."""
        prior, present = self(observed), observed.present
        matrix = masked(prior.covariance, problem.noise.variances(observed), present)
        factor, jitter = jittered_cholesky(matrix)
        root = inverse_lower(factor)
        return State(problem, observed, y, root, root @ (present * (y - prior.mean)), jitter)


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
    precision = jnp.finfo(jnp.result_type(float))
    smallest = max(SMALLEST_Y, 100.0 * float(precision.tiny))
    if not smallest <= y_scale <= 1.0 / smallest:
        raise ValueError(
            f"y_scale is {y_scale}; it has to be from {smallest:.3g} to {1.0 / smallest:.3g}, "
            "where a variance is a number: give y in another unit"
        )
    lower, upper = np.atleast_1d(np.asarray(lower, float)), np.atleast_1d(np.asarray(upper, float))
    if lower.shape != upper.shape or lower.ndim != 1 or not np.all(lower < upper):
        raise ValueError(f"the box from {lower.tolist()} to {upper.tolist()} is empty")
    if not (np.all(upper - lower >= precision.tiny) and np.all(upper - lower <= precision.max)):
        raise ValueError(
            f"the box from {lower.tolist()} to {upper.tolist()}: its widths have to be from "
            f"{precision.tiny:.3g} to {precision.max:.3g}; give the points in another unit"
        )
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


@runtime_checkable
class Conditioned(Protocol):
    """A process conditioned on data, by the linear algebra of its forward model: it has the fields
    `problem`, `observed`, `y`, and `count` and `singular` as `State` has them."""

    def posterior(
        self, points: Float[Array, "m d"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m"]]: ...

    def with_datum(self, point: Float[Array, "d"], y, noise_ratio) -> "Conditioned": ...


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
        return self.observed.measured

    @property
    def singular(self) -> bool:
        """Whether the matrix could not be factorised as it is, for want of noise."""
        return bool(np.asarray(self.jitter) > 0.0)  # on the host: in any precision around

    def against(self, points: Float[Array, "m d"]) -> Float[Array, "capacity m"]:
        """root K(data, points): what the data say of the points."""
        covariance = self.problem.forward.covariance(self.observed.points, points)
        return self.root @ (self.observed.present[:, None] * covariance)

    def noise_and_jitter(self, x: Observed) -> Float[Array, "n"]:
        """The variances that the state takes for those of independent noise, jitter among them."""
        noise = self.problem.noise.variances(x)
        return noise + self.jitter * (self.problem.forward.variance(x.points) + noise)

    def posterior(self, points: Float[Array, "m d"]) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
        now = tracked(self, points)
        return now.mean, now.variance

    def with_datum(self, point: Float[Array, "d"], y, noise_ratio) -> "State":
        n, x = self.observed.free_row, Observed.at(point[None], noise_ratio)
        forward = self.problem.forward
        known = self.against(x.points)[:, 0]
        own = forward.variance(x.points)[0] + self.noise_and_jitter(x)[0]
        square, rounding = own - known @ known, jnp.finfo(own.dtype).eps
        lost = square <= LOST * rounding * own
        least = jnp.maximum(self.jitter, first_jitter(self.root))
        rest = jnp.sqrt(jnp.where(lost, least * own, square))
        row = (-(known @ self.root) / rest).at[n].set(1.0 / rest)
        white = (y - forward.mean(x.points)[0] - known @ self.white) / rest
        full = jnp.where(n < len(self.y), 0.0, jnp.nan)
        return State(
            self.problem,
            self.observed.with_point(point, noise_ratio),
            self.y.at[n].set(y),
            self.root.at[n].set(row),
            self.white.at[n].set(white) + full,
            jnp.where(lost, least, self.jitter),
        )


def conditioned(
    problem: InverseProblem, observed: Observed, y: Float[Array, "capacity"]
) -> Conditioned:
    """The posterior of the process at the values of `problem`: the part for inside jit."""
    return problem.forward.solved(problem, observed, y)


condition = double(eqx.filter_jit(conditioned))


def posterior(
    state: Conditioned, points: Float[Array, "m d"]
) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
    """Mean and variance of the function (without noise) at `points`: the part for inside jit."""
    return state.posterior(points)


@double
def predict(
    state: Conditioned, points: Float[ArrayLike, "m d"]
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Mean and variance of the function (without noise) at `points`, compiled for each m."""
    return jax.device_get(_posterior(state, jnp.asarray(points)))


_posterior = eqx.filter_jit(posterior)


def joint(
    state: State, points: Float[Array, "m d"]
) -> tuple[Float[Array, "m"], Float[Array, "m m"]]:
    """Mean and full covariance of the function at a few points."""
    forward = state.problem.forward
    known = state.against(points)
    return (
        forward.mean(points) + state.white @ known,
        forward.covariance(points, points) - known.T @ known,
    )


# --- one more datum ----------------------------------------------------------------------------


@double
def append(
    state: Conditioned, point: Point, y: ArrayLike, noise_ratio: ArrayLike = 1.0
) -> Conditioned:
    """The state with one more datum, at the same hyper-parameters: by a rank-1 update.

    Full buffers are doubled, which compiles anew and costs a factorisation.

    **Raises:** `ValueError` for a datum that is not finite.
    """
    return _append(with_room(state), *datum(point, y, noise_ratio))


def appended(state: Conditioned, point: Float[Array, "d"], y, noise_ratio) -> Conditioned:
    """`append` for inside jit, where buffers cannot grow: of full ones it makes NaN."""
    return state.with_datum(point, y, noise_ratio)


_append = eqx.filter_jit(appended)


def with_room(state: Conditioned, extra: int = 1) -> Conditioned:
    """The state in buffers for `extra` more points: the same one, or conditioned in larger ones."""
    if state.count + extra <= len(state.y):
        return state
    return condition(state.problem, *grown(state.observed, state.y, state.count + extra))


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
    forward, known = state.problem.forward, state.against(points)
    prior = forward.variance(points)
    # rounding may leave less than nothing
    variance = jnp.maximum(prior - jnp.sum(known**2, axis=0), ROUNDED * prior)
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
    state, points, n = followed.state, followed.points, followed.state.observed.free_row
    new, forward = appended(state, point, y, noise_ratio), state.problem.forward
    known = state.against(point[None])[:, 0]
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
