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
from micjax.physics.patches.unmixing.corners import end_members
from micjax.physics.patches.unmixing.laws import (
    Counts,
    Law,
    Values,
    blocks,
    chosen,
    finer_blocks,
    trials,
)
from micjax.problems.unmixing.model import MixedSpectra

ABUNDANCE, SPECTRUM, SIGMA = "forward.abundance", "forward.spectrum", "noise.sigma"
TINY = 1e-6  # of the mean: an end member that is not there, in a model that has room for it


def stages(problem: InverseProblem, x: Int[Array, "n"], y: Float[Array, "n f"]) -> list:
    """The number of end members from data that are held out, and the factorisation."""
    factors = Search(_unmixed, _with_factors, "end members")
    if problem.forward.components:
        return [factors]
    return [Search(_counted, _with_number, "how many end members"), factors]


def law_of(problem: InverseProblem, x: Int[Array, "n"], y: Float[Array, "n f"]) -> Law:
    """The data with the law of their noise."""
    grid, y = problem.forward.grid, np.asarray(y)
    counted = isinstance(problem.noise, Poisson)
    level = float(y.sum(axis=1).mean()) if counted else np.inf
    groups = [
        np.unique(group[np.asarray(x)], return_inverse=True)[1]
        for group in (blocks(grid), finer_blocks(grid, level))
    ]
    return Counts(y, *groups) if counted else Values(y, float(problem.noise.sigma), *groups)


def known_of(problem: InverseProblem) -> Float[np.ndarray, "m f"] | None:
    """End members that are known, each adds up to one."""
    known = problem.forward.known
    return np.asarray(known, float) if len(known) else None


def _counted(problem: InverseProblem, x, y, key, report) -> Arrays:
    """How many there are, and what was tried."""
    most, tried = problem.forward.abundance.shape[1], []
    for trial in trials(law_of(problem, x, y), most, _rng(key), known_of(problem)):
        tried.append(trial)
        report(len(tried) / most, f"{trial.count}: {trial.gain:+.4g} nats")
    return {"components": np.array(chosen(tried)), "tried": np.array([tuple(t) for t in tried])}


def _with_number(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    forward = dataclasses.replace(problem.forward, components=int(arrays["components"]))
    return eqx.tree_at(lambda p: p.forward, problem, forward)


def _rng(key) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def _unmixed(problem: InverseProblem, x, y, key, report) -> Arrays:
    """Abundances and spectra of all that have room in the model."""
    forward: MixedSpectra = problem.forward
    count, law, known = forward.components, law_of(problem, x, y), known_of(problem)
    apart = end_members(law, count, known)
    first = len(forward.known)  # they stay first
    order = np.argsort(-apart.w[:, first:].sum(axis=0)) + first
    order = np.concatenate([np.arange(first), order])
    w, h = apart.w[:, order], apart.h[order]
    smallest = TINY * float(w.mean())
    abundance = np.full(forward.abundance.shape, smallest)
    spectrum = np.full(forward.spectrum.shape, 1.0 / h.shape[1])
    abundance[np.asarray(x), :count] = np.maximum(w, smallest)
    spectrum[:count] = np.maximum(h, TINY / h.shape[1])
    arrays = {
        "abundance": abundance,
        "spectrum": spectrum,
        "components": np.array(count),
        "abundance_sd": apart.abundance_sd[:, order],
        "spectrum_sd": apart.spectrum_sd[order],
        "spectrum_angle_rad": apart.angle_rad[order],
        "alone": apart.alone[order],
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
