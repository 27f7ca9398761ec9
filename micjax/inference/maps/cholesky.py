"""Small positive definite systems, many side by side: written out, as libraries of linear algebra
take a microsecond for each."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LEAST = 1e-6  # pivot of a matrix with a diagonal of 1, below which single precision sees nothing

Triangle = Float[Array, "t b"]


def _at(i: int, j: int) -> int:
    return i * (i + 1) // 2 + j


def scaled(matrix: Triangle, d: int) -> tuple[Triangle, Float[Array, "d b"]]:
    """With a diagonal of 1, and what rows and columns were multiplied by: units do not matter."""
    own = jnp.stack([matrix[_at(i, i)] for i in range(d)])
    scale = jnp.where(own > 0, jax.lax.rsqrt(jnp.where(own > 0, own, 1.0)), 1.0)
    rows, columns = np.tril_indices(d)
    return matrix * scale[rows] * scale[columns], scale


def factor(matrix: Triangle, d: int, damping=0.0) -> list[list[Float[Array, " b"]]]:
    """The Cholesky factor of a `scaled` matrix with `damping` added to its diagonal; on its
    diagonal are the inverses of what usually stands there."""
    low: list[list] = [[] for _ in range(d)]
    for i in range(d):
        for j in range(i + 1):
            value = matrix[_at(i, j)] - sum(low[i][k] * low[j][k] for k in range(j))
            if i == j:
                value = jax.lax.rsqrt(jnp.maximum(value + damping, LEAST))
            else:
                value = value * low[j][j]
            low[i].append(value)
    return low


def solved(low, right: Float[Array, "d b"]) -> tuple[Float[Array, "d b"], Float[Array, " b"]]:
    """The solution, and right times it."""
    d, half = len(low), []
    for i in range(d):
        half.append((right[i] - sum(low[i][k] * half[k] for k in range(i))) * low[i][i])
    out: list = [None] * d
    for i in reversed(range(d)):
        out[i] = (half[i] - sum(low[k][i] * out[k] for k in range(i + 1, d))) * low[i][i]
    return jnp.stack(out), sum(h * h for h in half)


def inverse(low) -> Float[Array, "d d b"]:
    """Of the matrix."""
    d, shape = len(low), low[0][0].shape
    columns = []
    for i in range(d):
        unit = jnp.zeros((d, *shape), low[0][0].dtype).at[i].set(1.0)
        columns.append(solved(low, unit)[0])
    return jnp.stack(columns, axis=1)
