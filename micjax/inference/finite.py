"""Why a loss is not finite: which leaf, and in which part of the objective."""

import equinox as eqx
import jax
import jax.numpy as jnp

from micjax.core.problem import InverseProblem, Theta, neg_log_joint


class NonFiniteError(ValueError):
    """The objective is not finite where it is needed; the message names the leaves at fault."""


def non_finite(theta: Theta, problem: InverseProblem, x, y) -> str:
    """The leaves whose value, log prior or gradient at `theta` is not finite, in one line."""
    leaves, parts = jax.device_get(_finite(theta, problem, x, y))
    faults = {n: [what for what, ok in found.items() if not ok] for n, found in leaves.items()}
    lines = [f"{n} ({', '.join(what)})" for n, what in faults.items() if what]
    lines += [f"the {what}" for what, ok in parts.items() if not ok]
    return ", ".join(lines) or "the loss itself"


@eqx.filter_jit
def _finite(theta: Theta, problem: InverseProblem, x, y):
    values, unknowns = problem.constrain(theta), problem.unknowns()
    gradient = jax.grad(neg_log_joint)(theta, problem, x, y)
    at = problem.at(values)
    prediction = at.forward(x)
    leaves = {
        n: {
            "value": jnp.all(jnp.isfinite(v)),
            "log prior": jnp.all(jnp.isfinite(unknowns[n].log_prob(v))),
            "gradient": jnp.all(jnp.isfinite(gradient[n])),
        }
        for n, v in values.items()
    }
    parts = {
        "prediction": jnp.all(
            jnp.stack([jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(prediction)])
        ),
        "likelihood": jnp.all(jnp.isfinite(at.noise(prediction).log_prob(y))),
    }
    return leaves, parts
