"""The posterior density in the unconstrained coordinates, which samplers and Laplace work in."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Theta, neg_log_joint

Tree = TypeVar("Tree")


def potential(theta: Theta, problem: InverseProblem, x, y) -> Float[Array, ""]:
    """-log p(theta | y) up to a constant: `neg_log_joint` - log |d values / d theta|."""
    values = problem.constrain(theta)
    volumes = (
        jnp.sum(dist.biject_to(p.support).log_abs_det_jacobian(theta[n], values[n]))
        for n, p in problem.unknowns().items()
    )
    return neg_log_joint(theta, problem, x, y) - sum(volumes)


def in_float64(tree: Tree) -> Tree:
    """`tree` with its floating arrays in float64 (complex128); needs `jax.enable_x64(True)`."""

    def cast(leaf):
        if not eqx.is_inexact_array_like(leaf) or isinstance(leaf, float | complex):
            return leaf
        return jnp.asarray(leaf, jnp.complex128 if jnp.iscomplexobj(leaf) else jnp.float64)

    return jax.tree.map(cast, tree)
