"""How `micjax.problems.unmixing` is solved: how many end members, then all of them at once."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem
from micjax.inference.stage import Arrays, Search
from micjax.physics.noise import Poisson
from micjax.physics.patches.unmixing.laws import (
    Counts,
    Law,
    Values,
    blocks,
    chosen,
    trials,
    uncertainty,
)
from micjax.problems.unmixing.model import MixedSpectra

ABUNDANCE, SPECTRUM, SIGMA = "forward.abundance", "forward.spectrum", "noise.sigma"
TINY = 1e-6  # of the mean: an end member that is not there, in a model that has room for it


def stages(problem: InverseProblem, x: Int[Array, "n"], y: Float[Array, "n f"]) -> list:
    """The number of end members from data that are held out, and the factorisation."""
    factors = Search(_factorised, _with_factors, "end members")
    if problem.forward.components:
        return [factors]
    return [Search(_counted, _with_number, "how many end members"), factors]


def law_of(problem: InverseProblem, x: Int[Array, "n"], y: Float[Array, "n f"]) -> Law:
    """The data with the law of their noise."""
    group = blocks(problem.forward.grid)[np.asarray(x)]
    group = np.unique(group, return_inverse=True)[1]
    if isinstance(problem.noise, Poisson):
        return Counts(np.asarray(y), group)
    return Values(np.asarray(y), float(problem.noise.sigma), group)


def _counted(problem: InverseProblem, x, y, key, report) -> Arrays:
    """How many there are, and what was tried."""
    most, tried = problem.forward.abundance.shape[1], []
    for trial in trials(law_of(problem, x, y), most, _rng(key)):
        tried.append(trial)
        report(len(tried) / most, f"{trial.count}: {trial.gain:+.4g} nats")
    return {"components": np.array(chosen(tried)), "tried": np.array([tuple(t) for t in tried])}


def _with_number(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    forward = dataclasses.replace(problem.forward, components=int(arrays["components"]))
    return eqx.tree_at(lambda p: p.forward, problem, forward)


def _rng(key) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def _factorised(problem: InverseProblem, x, y, key, report) -> Arrays:
    """Abundances and spectra of all that have room in the model."""
    forward: MixedSpectra = problem.forward
    count, law = forward.components, law_of(problem, x, y)
    w, h = law.factors(count)
    order = np.argsort(-w.sum(axis=0))
    w, h = w[:, order], h[order]
    report(0.5, "errors")
    sure = uncertainty(law, w, h, _rng(key))
    smallest = TINY * float(w.mean())
    abundance = np.full(forward.abundance.shape, smallest)
    spectrum = np.full(forward.spectrum.shape, 1.0 / h.shape[1])
    abundance[np.asarray(x), :count] = np.maximum(w, smallest)
    spectrum[:count] = np.maximum(h, TINY / h.shape[1])
    arrays = {
        "abundance": abundance,
        "spectrum": spectrum,
        "components": np.array(count),
        "abundance_sd": sure.abundance,
        "spectrum_sd": sure.spectrum,
        "spectrum_angle_rad": sure.angle_rad,
    }
    if isinstance(law, Values):
        left = np.asarray(y) - w @ h
        free = max(1, left.size - count * (sum(left.shape) - count))
        arrays["sigma"] = np.sqrt(np.sum(left**2) / free)
    return {name: np.asarray(array) for name, array in arrays.items()}


def _with_factors(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    values = {ABUNDANCE: arrays["abundance"], SPECTRUM: arrays["spectrum"]}
    if "sigma" in arrays:
        values[SIGMA] = arrays["sigma"]
    return problem.at({name: jnp.asarray(value, float) for name, value in values.items()})
