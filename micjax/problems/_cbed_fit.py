"""Fits of `micjax.problems.cbed`: where to start, and the way from there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Values, neg_log_joint
from micjax.inference.optimise import Fit
from micjax.physics.pacbed import Camera

Pixels = Float[Array, "my mx"]
TILTS = 5  # of the search along each axis, from -2 to 2 sd
SETTLED = 0.1  # nats: a step that gains less is the last one


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
    found = []
    for _ in range(n):
        i, j = np.unravel_index(np.argmax(table), table.shape)
        if not np.isfinite(table[i, j]):
            break
        start = {"forward.thickness_A": thickness[j], "forward.tilt_mrad": tilts[i]}
        found.append({name: jnp.asarray(v, float) for name, v in start.items() if name in unknowns})
        near = np.hypot(*(tilts - tilts[i]).T) <= apart
        table[np.ix_(near, np.abs(thickness - thickness[j]) < 4 * height)] = -np.inf
    return found


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


def scored(problem: InverseProblem, x: Camera, y: Pixels, steps: int, on_chunk=None) -> Fit:
    """The maximum a posteriori by Fisher's scoring, damped as Levenberg and Marquardt do.

    Few unknowns and many pixels: derivatives forwards are cheap, J^T J / rate is the Hessian that
    is to be expected, and some five steps are enough.
    """
    flat, named = ravel_pytree(problem.unconstrain(problem.values()))
    losses, damping, reason = [float(_loss(flat, problem, x, y))], 1e-2, "steps"
    try:
        for done in range(1, steps + 1):
            there = _step(flat, jnp.asarray(damping, flat.dtype), problem, x, y)
            new, loss = float(_loss(there, problem, x, y)), min(losses)
            better = new < loss
            flat, damping = (there, 0.1 * damping) if better else (flat, 10.0 * damping)
            losses.append(new)
            if on_chunk is not None:
                on_chunk(done, min(losses), problem.constrain(named(flat)))
            if abs(loss - new) < SETTLED:
                reason = "converged"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    best = problem.at(problem.constrain(named(flat)))
    loss = float(np.nanmin(losses))
    return Fit(
        best, loss, np.asarray(losses), len(losses), reason, np.array([loss]), [best.values()]
    )


@eqx.filter_jit
def _loss(flat, problem: InverseProblem, x, y):
    return neg_log_joint(_named(problem)(flat), problem, x, y)


@eqx.filter_jit
def _step(flat, damping, problem: InverseProblem, x, y):
    """Where a step leads."""
    named, unknowns = _named(problem), problem.unknowns()

    def rate(flat):
        at = problem.at(problem.constrain(named(flat)))
        return at.noise(at.forward(x)).rate

    def prior(flat):
        values = problem.constrain(named(flat))
        return -sum(p.log_prob(values[n]) for n, p in unknowns.items())

    expected, slope = rate(flat), jax.jacfwd(rate)(flat)
    gradient = jnp.tensordot(1.0 - y / expected, slope, 2) + jax.grad(prior)(flat)
    fisher = jnp.einsum("yxi,yxj,yx->ij", slope, slope, 1.0 / expected)
    return flat - jnp.linalg.solve(fisher + damping * jnp.diag(jnp.diag(fisher)), gradient)


def _named(problem: InverseProblem):
    return ravel_pytree(problem.unconstrain(problem.values()))[1]
