"""Where the truth lies in a posterior: at which share of it, number by number.

A posterior that is what it says has the truth at any share of it equally often (simulation-based
calibration: Talts et al. 2018, arXiv:1804.06788, theorem 1; Cook, Gelman and Rubin 2006).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist
import scipy.stats
from jaxtyping import Float

from micjax.core.coordinates import Coordinates
from micjax.core.problem import InverseProblem
from micjax.inference.errors.importance import FEWEST
from micjax.inference.errors.laplace import Laplace
from micjax.inference.errors.nuts import Posterior
from micjax.inference.maps.each import pixel_name
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.status import STATUS
from micjax.inference.solution import Solution

Ranks = dict[str, Float[np.ndarray, "n"]]  # 0 to 1, of each number of an unknown


def ranks_of(solution: Solution, truth: InverseProblem) -> Ranks:
    """Of the unknowns that the solution states errors of: from draws if there are any, else from
    the Gaussian of each pixel of a map, else from that of Laplace. What is told to be not
    identified, or not converged, has no rank."""
    if isinstance(fit := solution.extra.get("fit"), MapFit):
        return _of_map(fit, truth)
    if solution.posterior is not None:
        return _of_draws(solution.posterior, truth)
    few = solution.laplace is not None and solution.laplace.effective < FEWEST
    if solution.laplace is None or solution.converged is False or few:
        return {}
    return _of_laplace(solution.laplace, truth)


def ranks_of_results(intervals: Mapping[str, tuple[Any, Any, Any]]) -> Ranks:
    """Of results with errors, `{name: (estimate, error, true value)}`; where there is no error
    nothing is claimed."""
    out = {}
    for name, (estimate, error, true) in intervals.items():
        known = np.isfinite(error) & (np.asarray(error) > 0)
        z = (np.asarray(true) - np.asarray(estimate))[known] / np.asarray(error)[known]
        out[name] = scipy.stats.norm.cdf(z)
    return out


def _of_draws(posterior: Posterior, truth: InverseProblem) -> Ranks:
    values, out = truth.values(), {}
    for name, draws in posterior.flat().items():
        if name not in values:
            continue
        flat, true = draws.reshape(len(draws), -1), np.ravel(values[name])
        below = (flat < true).sum(axis=0) + 0.5 * (flat == true).sum(axis=0)
        out[name] = (below + 0.5) / (len(flat) + 1.0)
    return out


def _of_map(fit: MapFit, truth: InverseProblem) -> Ranks:
    sure = fit.status == STATUS.index("converged")
    true = {pixel_name(n): np.asarray(v, float) for n, v in truth.values().items()}
    out = {}
    for name, value in fit.values.items():
        z = _apart(name, true[name][sure] - value[sure]) / fit.sd[name][sure]
        out[name] = scipy.stats.norm.cdf(np.ravel(z))
    return out


def _of_laplace(laplace: Laplace, truth: InverseProblem) -> Ranks:
    """In the coordinates in which it is a Gaussian."""
    with jax.enable_x64(True):
        coordinates = Coordinates(laplace.problem, laplace.names)
        at = laplace.problem.at({n: truth.values()[n] for n in laplace.names})
        there = np.asarray(coordinates.vector(at.unconstrain(at.values())))
    if laplace.draws is not None:
        below = np.mean(laplace.draws < there, axis=0)
        named = [n for n in laplace.names if laplace.identified[n]]
        return {n: below[coordinates.owner == n] for n in named}
    sd = np.sqrt(np.diag(laplace.covariance))
    owner, apart = coordinates.owner, there - laplace.mean
    unknowns = laplace.problem.unknowns()
    for name in laplace.names:
        if unknowns[name].support is dist.constraints.real:
            apart[owner == name] = _apart(name, apart[owner == name])
    z = np.where(sd > 0, apart / np.where(sd > 0, sd, 1.0), np.nan)
    z[laplace.unbounded] = np.nan  # an improper prior: nothing is claimed
    named = [n for n in laplace.names if laplace.identified[n]]
    every = {n: scipy.stats.norm.cdf(z[owner == n]) for n in named}
    return {n: u[np.isfinite(u)] for n, u in every.items()}


def _apart(name: str, difference: np.ndarray) -> np.ndarray:
    """Angles are the same a turn further."""
    turn = {"rad": 2.0 * np.pi, "deg": 360.0}.get(name.rpartition("_")[2])
    return difference if turn is None else difference - turn * np.round(difference / turn)


class Claim(NamedTuple):
    """How often intervals of an unknown hold the truth.

    - `runs`, `numbers`: of which it is known.
    - `half`, `ninety`: the share of 50 % and 90 % intervals that hold it; `ninety_sd` how well the
        latter is known: runs are independent of each other, the numbers of one run need not be.
    - `p_value`: of ranks that are equally frequent, one number of each run (Kolmogorov-Smirnov).
    - `widening`: by how much 90 % intervals would have to be wider to hold it in 90 %.
    """

    runs: int
    numbers: int
    half: float
    ninety: float
    ninety_sd: float
    p_value: float
    widening: float

    def holds(self, low: float = 0.85, high: float = 0.95) -> bool:
        """Whether 90 % intervals hold the truth in so many cases, as far as the runs can tell:
        within two standard deviations."""
        return (
            self.ninety + 2.0 * self.ninety_sd >= low and self.ninety - 2.0 * self.ninety_sd <= high
        )


def claim(ranks: list[Float[np.ndarray, "n"]], seed: int = 0) -> Claim | None:
    """From the ranks of an unknown in each run; None without any."""
    ranks = [u for u in ranks if u.size]
    if not ranks:
        return None
    rng, every = np.random.default_rng(seed), np.concatenate(ranks)
    shares = np.array([np.mean(np.abs(u - 0.5) < 0.45) for u in ranks])
    weights = np.array([u.size for u in ranks], float)
    ninety = float(np.sum(weights * shares) / weights.sum())
    # of a share of 0 or 1 the spread that few runs show is none
    expected = np.sqrt(0.9 * 0.1 / len(ranks))
    spread = np.sqrt(np.sum((weights * (shares - ninety)) ** 2)) / weights.sum()
    one_each = np.array([rng.choice(u) for u in ranks])
    widest = np.quantile(np.abs(scipy.stats.norm.ppf(np.clip(every, 1e-12, 1 - 1e-12))), 0.9)
    return Claim(
        len(ranks),
        every.size,
        float(np.mean(np.abs(every - 0.5) < 0.25)),
        ninety,
        float(max(spread, expected if every.size == len(ranks) else 0.0)),
        float(scipy.stats.kstest(one_each, "uniform").pvalue),
        float(widest / scipy.stats.norm.ppf(0.95)),
    )
