"""Small positive definite systems, many side by side, as libraries of linear algebra take a
microsecond for each: written out, or column by column where that would take long to compile."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LEAST = 1e-6  # pivot of a matrix with a diagonal of 1, below which single precision sees nothing

WRITTEN_OUT = 7  # rows at most

Triangle = Float[Array, "t b"]


def _at(i: int, j: int) -> int:
    return i * (i + 1) // 2 + j


def scaled(matrix: Triangle, d: int) -> tuple[Triangle, Float[Array, "d b"]]:
    """With a diagonal of 1, and what rows and columns were multiplied by: units do not matter."""
    own = jnp.stack([matrix[_at(i, i)] for i in range(d)])
    scale = jnp.where(own > 0, jax.lax.rsqrt(jnp.where(own > 0, own, 1.0)), 1.0)
    rows, columns = np.tril_indices(d)
    return matrix * scale[rows] * scale[columns], scale


def factor(matrix: Triangle, d: int, damping=0.0):
    """The Cholesky factor of a `scaled` matrix with `damping` added to its diagonal, rows of
    columns; on its diagonal are the inverses of what usually stands there."""
    if d > WRITTEN_OUT:
        return factor_by_column(matrix, d, damping)
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
    if isinstance(low, jax.Array):
        return _solved(low, right)
    d, half = len(low), []
    for i in range(d):
        half.append((right[i] - sum(low[i][k] * half[k] for k in range(i))) * low[i][i])
    out: list = [None] * d
    for i in reversed(range(d)):
        out[i] = (half[i] - sum(low[k][i] * out[k] for k in range(i + 1, d))) * low[i][i]
    return jnp.stack(out), sum(h * h for h in half)


def inverse(low) -> Float[Array, "d d b"]:
    """Of the matrix."""
    if isinstance(low, jax.Array):
        d, _, b = low.shape
        unit = jnp.broadcast_to(jnp.eye(d, dtype=low.dtype)[..., None], (d, d, b))
        return jax.vmap(lambda right: _solved(low, right)[0], 1, 1)(unit)
    d, shape = len(low), low[0][0].shape
    columns = []
    for i in range(d):
        unit = jnp.zeros((d, *shape), low[0][0].dtype).at[i].set(1.0)
        columns.append(solved(low, unit)[0])
    return jnp.stack(columns, axis=1)


def factor_by_column(matrix: Triangle, d: int, damping=0.0) -> Float[Array, "d d b"]:
    """The same as an array, quicker to compile: for what is done once."""
    rows, columns = np.tril_indices(d)
    full = jnp.zeros((d, d, matrix.shape[-1]), matrix.dtype)
    full = full.at[rows, columns].set(matrix).at[columns, rows].set(matrix)
    below = jnp.asarray(np.tri(d, k=-1), matrix.dtype)

    def column(i, carried):
        rest, low = carried
        inverse = jax.lax.rsqrt(jnp.maximum(rest[i, i] + damping, LEAST))
        own = below[:, i, None] * rest[:, i] * inverse
        return rest - own[:, None] * own, low.at[:, i].set(own.at[i].set(inverse))

    return jax.lax.fori_loop(0, d, column, (full, jnp.zeros_like(full)))[1]


def _solved(low: Float[Array, "d d b"], right: Float[Array, "d b"]):
    d = len(low)
    below = low * jnp.asarray(np.tri(d, k=-1), low.dtype)[..., None]

    def forth(i, half):
        return half.at[i].set((right[i] - jnp.sum(below[i] * half, axis=0)) * low[i, i])

    def back(k, out):
        i = d - 1 - k
        return out.at[i].set((half[i] - jnp.sum(below[:, i] * out, axis=0)) * low[i, i])

    half = jax.lax.fori_loop(0, d, forth, jnp.zeros_like(right))
    return jax.lax.fori_loop(0, d, back, jnp.zeros_like(right)), jnp.sum(half * half, axis=0)
