"""How `micjax.problems.cbed` is solved: where fits start, and what is told of the answer."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Values
from micjax.inference.errors.estimates import LaplaceErrors
from micjax.inference.solution import Solution
from micjax.inference.solvers.gauss_newton import FisherScoring
from micjax.inference.stage import Stage
from micjax.physics.electrons.pacbed import Camera
from micjax.problems.cbed.model import Pixels

TILTS = 5  # of the search along each axis, from -2 to 2 sd
CHUNK = 3  # steps between two checkpoints
LOST = 0.01  # of the electrons, which is told
TOO_COARSE = (
    "The grid of {} x {} pixels over the cell loses {:.2g} % of the electrons, which the fit takes "
    "for absorbed ones: give a smaller u_A2 to start from, or more pixels."
)


def stages(
    problem: InverseProblem, x: Camera, y: Pixels, *, steps: int = 20, starts: int = 3
) -> list:
    """The best of several fits, from the likeliest thicknesses and tilts; Laplace errors.

    **Arguments:**

    - `steps`: of Fisher scoring, at most, for each start.
    - `starts`: how many.
    """

    def likeliest(problem, x, y, candidates, key):
        return everywhere(problem, x, y, starts)

    return [Stage(FisherScoring(), steps, CHUNK, starts=likeliest), LaplaceErrors(expected=True)]


def conclude(solution: Solution, x: Camera, y: Pixels) -> Solution:
    """With the electrons that the grid loses."""
    forward = solution.problem.forward
    lost = float(forward.lost())
    statements = [TOO_COARSE.format(*forward.shape, 100 * lost)] if lost > LOST else []
    return dataclasses.replace(
        solution,
        metrics={**solution.metrics, "electrons_lost_beyond_grid": lost},
        statements=[*solution.statements, *statements],
    )


def everywhere(problem: InverseProblem, x: Camera, y: Pixels, n: int) -> list[Values]:
    """The `n` likeliest of all whole numbers of cells and a grid of tilts, far from one another."""
    unknowns, forward = problem.unknowns(), problem.forward
    tilts, height = np.asarray(forward.tilt_mrad)[None], float(forward.box_A[2])
    if prior := unknowns.get("forward.tilt_mrad"):
        axis = np.linspace(-2.0, 2.0, TILTS)
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        tilts = np.asarray(prior.mean) + grid * np.sqrt(np.asarray(prior.variance))
    thickness = height * np.arange(forward.cells + 1)
    allowed = thickness > 0
    if prior := unknowns.get("forward.thickness_A"):
        allowed = np.isfinite(dist.biject_to(prior.support).inv(jnp.asarray(thickness)))
    table = np.array(_log_likelihoods(problem, jnp.asarray(tilts, dtype=float), x, y))
    table[:, ~allowed] = -np.inf
    apart = 1.1 * np.max(np.diff(tilts, axis=0), initial=0.0)
    starts = []
    for _ in range(n):
        i, j = np.unravel_index(np.argmax(table), table.shape)
        if not np.isfinite(table[i, j]):
            break
        start = {"forward.thickness_A": thickness[j], "forward.tilt_mrad": tilts[i]}
        starts.append(
            {name: jnp.asarray(v, float) for name, v in start.items() if name in unknowns}
        )
        near = np.hypot(*(tilts - tilts[i]).T) <= apart
        table[np.ix_(near, np.abs(thickness - thickness[j]) < 4 * height)] = -np.inf
    return starts


@eqx.filter_jit
def _log_likelihoods(problem: InverseProblem, tilts, x, y) -> Float[Array, "tilts cells"]:
    """Of each tilt and each number of cells."""

    def at(tilt):
        forward = problem.at({"forward.tilt_mrad": tilt}).forward
        pixels = forward.on(x)
        return jax.lax.map(
            lambda curves: problem.noise(pixels(*curves)).log_prob(y).sum(),
            forward.every_thickness(),
        )

    return jax.lax.map(at, tilts)
