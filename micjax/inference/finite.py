"""Why a loss is not finite: which leaf, and in which part of the objective."""

import equinox as eqx
import jax
import jax.numpy as jnp

from micjax.core.problem import InverseProblem, Theta, neg_log_joint


class NonFiniteError(ValueError):
    """The objective is not finite where it is needed; the message names the leaves at fault."""


def non_finite(theta: Theta, problem: InverseProblem, x, y) -> str:
    """The leaves whose value, log prior or gradient at `theta` is not finite, in one line.

    Only the first of the three that fails anywhere is told, the next ones follow from it.
    """
    leaves, parts = jax.device_get(_finite(theta, problem, x, y))
    lines = _first_fault(leaves, "value", "log prior", "gradient")
    if not parts["prediction"]:
        lines.append("the prediction")
    elif not parts["likelihood"]:
        lines.append("the likelihood")
    return ", ".join(lines) or "all leaves are finite"


def _first_fault(leaves: dict[str, dict], *order: str) -> list[str]:
    for part in order:
        if bad := [f"{n} ({part})" for n, finite in leaves.items() if not finite[part]]:
            return bad
    return []


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
