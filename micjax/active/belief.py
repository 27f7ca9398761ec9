"""What a learner believes: the pure step from data and the last belief to the next."""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.active import gp
from micjax.active.evidence import Evidence, fit_evidence
from micjax.active.kernels import RBF, Categorical, Kernel, Matern, Over
from micjax.active.scalarise import Scale, scale_of
from micjax.active.space import Space
from micjax.core.problem import InverseProblem, Values
from micjax.core.tree import replace
from micjax.inference.laplace import laplace

FRESH_EVERY = 5  # data, after which a start from the prior is tried too
DRAWS = 16  # of the hyper-parameters, for a prediction


@dataclasses.dataclass(frozen=True)
class Model:
    """How outcomes are modelled: processes and scales, every pair of which competes."""

    processes: tuple[InverseProblem, ...]
    scales: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Belief:
    """The competing models fitted to all data so far, and the likeliest conditioned on it."""

    fits: tuple[Evidence, ...]
    state: gp.State
    scale: Scale

    @functools.cached_property
    def draws(self) -> dict[str, np.ndarray]:
        """Hyper-parameters from the Laplace approximation of their posterior: a process at its most
        probable ones is too sure of itself when points are few."""
        state = self.state
        return laplace(state.problem, state.observed, state.y).sample(jax.random.key(0), DRAWS)

    @property
    def singular(self) -> bool:
        """Whether the kernel matrix could only be factorised with more jitter than usual."""
        return gp.relative_jitter(self.state) > 2.0 * gp.JITTER


def plain_model(space: Space, scales: tuple[str, ...] = ("robust", "linear")) -> Model:
    """Processes without physics, Matérn 5/2 and RBF, on scaled outcomes."""
    processes = []
    for kind in (Matern, RBF):
        kernel, priors = _kernel(space, kind)
        # a smaller one would pass chance for structure where points are few
        priors["noise.sigma"] = dist.LogNormal(np.log(0.1), 1.0)
        processes.append(gp.process(space.lower, space.upper, kernel=kernel, priors=priors))
    return Model(tuple(processes), scales)


def _kernel(space: Space, kind: type[Kernel]) -> tuple[Kernel, dict[str, dist.Distribution]]:
    """A kernel of `kind` over the ordered axes, times one over the categories."""
    categorical = space.categorical
    ordered = tuple(i for i in range(len(space.axes)) if i not in categorical)
    location = np.sqrt(2.0) + 0.5 * np.log(max(len(ordered), 1))
    long, amplitude = dist.LogNormal(location, np.sqrt(3.0)), dist.LogNormal(0.0, 0.5)
    short = np.exp(location - 2.0)
    at = "forward.kernel"
    if not categorical:
        kernel = kind(np.full(len(ordered), short))
        return kernel, {f"{at}.lengthscale": long, f"{at}.amplitude": amplitude}
    named = Over(Categorical(np.ones(len(categorical))), categorical)
    alike = dist.LogNormal(0.0, 1.0)
    if not ordered:
        return named, {
            f"{at}.kernel.lengthscale": alike,
            f"{at}.kernel.amplitude": amplitude,
        }
    return Over(kind(np.full(len(ordered), short)), ordered) * named, {
        f"{at}.parts.0.kernel.lengthscale": long,
        f"{at}.parts.0.kernel.amplitude": amplitude,
        f"{at}.parts.1.kernel.lengthscale": alike,
    }


def physical_model(
    space: Space,
    mean: InverseProblem,
    reads: Callable[[Array], Array] | None = None,
    y_scale: float = 1.0,
) -> Model:
    """A process about the forward model of `mean`, in the units of its outcomes."""
    process = gp.process(space.lower, space.upper, mean=mean, reads=reads, y_scale=y_scale)
    return Model((process,), ("none",))


@gp.double
def predictive(
    belief: Belief, points: Float[Array, "m d"]
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Mean and variance of the function and variance of one measurement, with the uncertainty of
    the hyper-parameters: the moments of the mixture over `belief.draws`."""
    state = belief.state
    draws = jax.tree.map(jnp.asarray, belief.draws)
    means, variances, noises = jax.device_get(
        _each(draws, state.problem, state.observed, state.y, jnp.asarray(points))
    )
    variance = variances.mean(axis=0) + means.var(axis=0)
    return means.mean(axis=0), variance, variance + noises.mean(axis=0)


@eqx.filter_jit
def _each(draws: Values, problem: InverseProblem, observed: gp.Observed, y, points):
    ones = jnp.ones(points.shape[0])
    wanted = gp.Observed(points, ones, ones)

    def one(values):
        at = replace(problem, values)
        mean, variance = gp.posterior(gp.conditioned(at, observed, y), points)
        return mean, variance, jnp.broadcast_to(at.noise.variances(wanted), mean.shape)

    return jax.lax.map(one, draws)


def believe(
    model: Model,
    points: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n"],
    last: Belief | None,
    key: Array,
) -> Belief:
    """The belief after the data `points`, `y`, reached from the `last` one.

    A pure function: the same data, last belief and key give the same belief.
    """
    fresh = last is None or len(y) % FRESH_EVERY == 0
    fits, likeliest = [], None
    for kind in model.scales:
        scale = scale_of(y, kind)
        observed, z = gp.buffered(points, scale.apply(y))
        for process in model.processes:
            fit = fit_evidence(
                process,
                observed,
                z,
                last=None if last is None else last.fits[len(fits)],
                key=jax.random.fold_in(key, len(fits)),
                restarts=1 if fresh else 0,
            )
            fits.append(fit)
            loss = fit.loss - scale.log_slope(y)
            if likeliest is None or loss < likeliest[0]:
                likeliest = loss, fit, observed, z, scale
    _, fit, observed, z, scale = likeliest
    return Belief(tuple(fits), gp.condition(fit.problem, observed, z), scale)
