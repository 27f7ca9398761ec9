"""What a learner believes: the pure step from data and the last belief to the next.

A model is a function (points, y, last belief, key) -> `Belief`, with `y_sd` where errors of the
outcomes have been measured. `Competing` is the one for
processes among which the evidence decides; `micjax.active.learner.looking` has deep kernels.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.active import streaming
from micjax.active.acquire.scalarise import Scale, scale_of
from micjax.active.gp import mixture as mixtures
from micjax.active.gp import process as gp
from micjax.active.gp.draws import plausible
from micjax.active.gp.evidence import Evidence, fit_evidence
from micjax.active.gp.kernels import RBF, Categorical, Kernel, Matern, Over
from micjax.active.gp.mixture import Mixture
from micjax.active.learner.predictive import Part, over_draws
from micjax.active.learner.space import Space
from micjax.core.problem import InverseProblem
from micjax.inference.errors.laplace import laplace

FRESH_EVERY = 5  # data, after which a start from the prior is tried too
FEW = 128  # data, up to which hyper-parameters are sampled for a prediction
DRAWS = 16  # of the hyper-parameters with more data, when they are known well
SUGGESTING = 8  # draws of the hyper-parameters of each process that suggest while data are few
PLAUSIBLE = 10.0  # nats, by which a model may be less likely than the best and still count

Points = Float[np.ndarray, "n d"]
Outcomes = Float[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Belief:
    """What a model makes of all data so far.

    **Arguments:**

    - `states`: the most probable processes conditioned on the data, equally likely ones, on
        `scale`: to be read.
    - `mixture`: what points are suggested by, on `scale`: with few data every process and all of
        its hyper-parameters that are plausible.
    - `memory`: whatever the model begins with when there are more data.
    - `predicts`: what a measurement at points `[m, d]` would give.
    """

    states: tuple[gp.Conditioned, ...]
    mixture: Mixture
    scale: Scale
    memory: Any
    predicts: Callable[[Points], list[Part]]

    @property
    def singular(self) -> bool:
        """Whether a kernel matrix could not be factorised as it is, for want of noise."""
        return any(state.singular for state in self.states)


Model = Callable[..., Belief]  # (points, y, last, key), and y_sd= where there are errors


# --- competing processes -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fitted:
    """One process on one scale at its most probable hyper-parameters."""

    evidence: Evidence
    scale: Scale
    observed: gp.Observed
    z: Float[Array, "capacity"]
    log_density: (
        float  # of the outcomes and the hyper-parameters, nats: for any scale the same unit
    )


@dataclasses.dataclass(frozen=True)
class Competing:
    """Every process on every scale, by their evidence.

    A prediction counts every one that is plausible, and (with `sampled`) all of its
    hyper-parameters while data are few: at the most probable ones a process is too sure of itself,
    and what is noise and what is structure may be open altogether. So does a suggestion, on the
    likeliest scale and with fewer draws. `sampled` evaluates the mean some ten thousand times;
    without it a Gaussian about the most probable ones is taken, and they suggest.
    """

    processes: tuple[InverseProblem, ...]
    scales: tuple[str, ...]
    sampled: bool = True

    def __call__(
        self,
        points: Points,
        y: Outcomes,
        last: Belief | None,
        key: Array,
        y_sd: Outcomes | None = None,
    ) -> Belief:
        fresh = last is None or len(y) % FRESH_EVERY == 0
        fits: list[Fitted] = []
        for kind in self.scales:
            scale = scale_of(y, kind)
            observed, z = gp.buffered(points, scale.apply(y), scale.noise_ratios(y, y_sd))
            for process in self.processes:
                evidence = fit_evidence(
                    process,
                    observed,
                    z,
                    last=None if last is None else last.memory[len(fits)].evidence,
                    key=jax.random.fold_in(key, len(fits)),
                    restarts=1 if fresh else 0,
                )
                fits.append(
                    Fitted(evidence, scale, observed, z, scale.log_slope(y) - evidence.loss)
                )
        best = max(fits, key=lambda fit: fit.log_density)
        state = gp.condition(best.evidence.problem, best.observed, best.z)
        few = self.sampled and len(y) <= FEW
        mixture = _suggesting(fits, best) if few else mixtures.of_states((state,))
        return Belief((state,), mixture, best.scale, fits, _Prediction(fits, best, y, few))


def _suggesting(fits: Sequence[Fitted], best: Fitted) -> Mixture:
    """All processes on the scale of the best one, by the evidence of each."""
    same = [fit for fit in fits if fit.scale == best.scale]
    drawn = [plausible(fit.evidence, fit.observed, fit.z, SUGGESTING) for fit in same]
    log_weight = np.repeat([draws.log_evidence for draws in drawn], SUGGESTING)
    parts = [(fit.evidence.problem, draws.values) for fit, draws in zip(same, drawn, strict=True)]
    return mixtures.conditioned(parts, log_weight, best.observed, best.z)


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """The mixture of `Competing`, worked out when it is first asked for."""

    fits: list[Fitted]
    best: Fitted
    y: Outcomes
    few: bool

    def __call__(self, points: Points) -> list[Part]:
        parts = []
        for fit, log_weight, values in self.draws:
            predicted = over_draws(values, fit.evidence.problem, fit.observed, fit.z, points)
            parts.append(Part(fit.scale, np.full(len(predicted[0]), log_weight), *predicted))
        return parts

    @functools.cached_property
    def draws(self) -> list[tuple[Fitted, float, dict[str, np.ndarray]]]:
        """Hyper-parameters of each plausible process, and the log weight of each draw."""
        key = jax.random.key(0)
        if not self.few:
            best = self.best
            values = laplace(best.evidence.problem, best.observed, best.z).sample(key, DRAWS)
            return [(best, 0.0, values)]
        drawn = []
        for fit in sorted(self.fits, key=lambda fit: -fit.log_density):
            if fit.log_density < self.best.log_density - PLAUSIBLE:
                break
            nowhere = fit.observed.points[:1]
            cloud = streaming.begin(fit.evidence.problem, fit.observed, fit.z, nowhere, key)
            log_weight = float(cloud.log_evidence) + fit.scale.log_slope(self.y)
            drawn.append((fit, log_weight, streaming.values(cloud)))
        return drawn


def plain_model(space: Space, scales: tuple[str, ...] = ("robust", "linear")) -> Competing:
    """Processes without physics, Matérn 5/2 and RBF, on scaled outcomes."""
    processes = []
    for kind in (Matern, RBF):
        kernel, priors = _kernel(space, kind)
        # wide: it has to hold for loops that are half noise and for functions without any
        priors["noise.sigma"] = dist.LogNormal(np.log(0.05), 1.5)
        processes.append(gp.process(space.lower, space.upper, kernel=kernel, priors=priors))
    return Competing(tuple(processes), scales)


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
) -> Competing:
    """A process about the forward model of `mean`, in the units of its outcomes."""
    process = gp.process(space.lower, space.upper, mean=mean, reads=reads, y_scale=y_scale)
    return Competing((process,), ("none",), sampled=False)
