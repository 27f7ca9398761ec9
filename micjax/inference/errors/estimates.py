"""Error estimates as entries of a list of stages: what follows the fits."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import jax
from jaxtyping import Array, ArrayLike

from micjax.inference.errors.importance import weighed
from micjax.inference.errors.laplace import Laplace, laplace
from micjax.inference.errors.nuts import Posterior, nuts
from micjax.inference.errors.svi import svi
from micjax.inference.solve import Fit
from micjax.inference.solvers.gauss_newton import expected_hessian

log = logging.getLogger("micjax")

MAX_DENSE = 500  # unknown numbers, above which a dense Hessian is not worth its time
Names = Sequence[str] | Callable[[Fit], Sequence[str]] | None


@runtime_checkable
class Estimate(Protocol):
    """Of the errors at the end of a fit. `title`: how it is called where it fails."""

    title: str

    def __call__(self, fit: Fit, x, y, key: Array) -> Laplace | Posterior | None: ...


def _chosen(names: Names, fit: Fit) -> list[str]:
    unknowns = list(fit.problem.unknowns())
    if names is None:
        return unknowns
    return list(names(fit) if callable(names) else names)


def _held(fit: Fit, names: Sequence[str]):
    """The problem in which only these are unknown."""
    problem = fit.problem
    if set(names) == set(problem.unknowns()):
        return problem
    return problem.given({n: None for n in problem.priors if n not in names})


@dataclasses.dataclass(frozen=True)
class LaplaceErrors:
    """`laplace` at the best values, with draws of the posterior where few are unknown.

    **Arguments:**

    - `names`: the unknowns that take part, or `names(fit)`; the others are held. Where there are
        none, there is no estimate.
    - `expected`: by the Hessian that is to be expected of counts: the dense one of many pixels
        would take gigabytes. Nothing is drawn then: thousands of predictions would take hours.
    """

    names: Names = None
    expected: bool = False

    title: ClassVar[str] = "Laplace errors"

    def __call__(self, fit: Fit, x, y, key: Array) -> Laplace | None:
        names, values = _chosen(self.names, fit), fit.problem.values()
        numbers = sum(values[n].size for n in names if n in values)
        if not names:
            return None
        if self.expected:
            held = _held(fit, names)
            hessian = expected_hessian(held, x, y)
            return laplace(fit.problem, x, y, list(held.unknowns()), hessian)
        if numbers > MAX_DENSE:
            log.info("no Laplace errors: %d unknown numbers, %d at most", numbers, MAX_DENSE)
            return None
        return weighed(laplace(fit.problem, x, y, names), x, y)


@dataclasses.dataclass(frozen=True)
class NUTS:
    """`nuts` from the best values on.

    **Arguments:** `samples`, `warmup` and `chains` as of `nuts`.

    - `names`: the unknowns that are sampled, or `names(fit)`; the others are held. Where there are
        none, nothing is sampled.
    - `starts`: `starts(fit, x, y, key, chains) -> [{name: value}, ...]`, of each chain.
    """

    samples: int = 500
    warmup: int = 500
    chains: int = 2
    names: Names = None
    starts: Callable[..., Sequence[Mapping[str, ArrayLike]]] | None = None

    title: ClassVar[str] = "posterior draws"

    def __post_init__(self):
        for name in ("samples", "chains"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: one at least is drawn")

    def __call__(self, fit: Fit, x, y, key: Array) -> Posterior | None:
        names, starts = _chosen(self.names, fit), None
        if not names:
            return None
        if self.starts is not None:
            starts_key, key = jax.random.split(key)
            starts = self.starts(fit, x, y, starts_key, self.chains)
        counts = {"samples": self.samples, "warmup": self.warmup, "chains": self.chains}
        return nuts(_held(fit, names), x, y, key, starts=starts, **counts)


@dataclasses.dataclass(frozen=True)
class SVI:
    """`svi` from the best values on.

    **Arguments:** `steps`, `samples` and `guide` as of `svi`.
    """

    steps: int = 2000
    samples: int = 500
    guide: str = "normal"

    title: ClassVar[str] = "variational posterior"

    def __call__(self, fit: Fit, x, y, key: Array) -> Posterior:
        counts = {"steps": self.steps, "samples": self.samples, "guide": self.guide}
        return svi(fit.problem, x, y, key, **counts)
