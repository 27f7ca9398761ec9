"""The linear algebra of Gaussian processes: factors, inverses and losses of covariance matrices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOST = 8.0  # a squared pivot of so many units of rounding says nothing any more
JITTER_TRIES = 12  # each ten times the last
BLOCK = 128  # below it LAPACK's triangular solve is the faster one


def masked(covariance, variances, present):
    """The matrix of the present points, with a unit diagonal and nothing else for the others."""
    both = present[:, None] * present
    return covariance * both + jnp.diag(present * variances + (1.0 - present))


def jittered_cholesky(
    matrix: Float[Array, "n n"], variances: Float[Array, "n"] | None = None
) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """The lower Cholesky factor of matrix + jitter diag(variances), and the jitter: 0 if possible.

    It is the least of 0, `first_jitter` and its tenfolds with which no pivot is lost in rounding;
    being a share of each variance, it does not depend on units.

    **Arguments:**

    - `variances`: of which rounding is a share; by default the diagonal of the matrix.
    """
    variances = jnp.diag(matrix) if variances is None else variances
    root = jnp.sqrt(jnp.where(variances > 0.0, variances, 1.0))
    unit = matrix / root[:, None] / root
    eye, least = jnp.eye(len(unit), dtype=unit.dtype), LOST * jnp.finfo(unit.dtype).eps
    possible = jnp.all(jnp.isfinite(unit))

    def attempt(jitter):
        return jnp.linalg.cholesky(unit + jitter * eye)

    def go_on(carry):
        factor, _, tries = carry
        return possible & (tries < JITTER_TRIES) & ~jnp.all(jnp.diag(factor) ** 2 > least)

    def again(carry):
        _, jitter, tries = carry
        jitter = jnp.maximum(10.0 * jitter, first_jitter(unit))
        return attempt(jitter), jitter, tries + 1

    none = jnp.zeros((), unit.dtype)
    factor, jitter, _ = jax.lax.while_loop(go_on, again, (jnp.linalg.cholesky(unit), none, 0))
    return root[:, None] * factor, jitter


def first_jitter(matrix: Float[Array, "n n"]) -> float:
    """About what rounding does to the smallest eigenvalues, as a share of the largest variance."""
    return len(matrix) * float(jnp.finfo(matrix.dtype).eps)


def inverse_lower(factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The inverse of a lower triangular matrix, by halves: a third of the work of a full solve."""
    n = factor.shape[0]
    if n <= BLOCK:
        eye = jnp.eye(n, dtype=factor.dtype)
        return jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
    h = n // 2
    first, last = inverse_lower(factor[:h, :h]), inverse_lower(factor[h:, h:])
    below = -last @ (factor[h:, :h] @ first)
    return jnp.block([[first, jnp.zeros((h, n - h), factor.dtype)], [below, last]])


def _gram(root: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """root^T root of a lower triangular matrix, by halves."""
    n = root.shape[0]
    if n <= BLOCK:
        return root.T @ root
    h = n // 2
    last, below = root[h:, h:], root[h:, :h]
    corner = last.T @ below
    return jnp.block([[_gram(root[:h, :h]) + below.T @ below, corner.T], [corner, _gram(last)]])


@jax.custom_vjp
def gaussian_loss(matrix: Float[Array, "n n"], residual: Float[Array, "n"]) -> Float[Array, ""]:
    """r^T K^-1 r / 2 + log |K| / 2, with the gradient (K^-1 - a a^T) / 2, a = K^-1 r, by hand."""
    return _loss_forward(matrix, residual)[0]


def _loss_forward(matrix, residual):
    root, log_determinant = _root(matrix)
    white = root @ residual
    return 0.5 * white @ white + 0.5 * log_determinant, (root, white)


def _root(matrix):
    """L^-1 and log |K|."""
    factor, _ = jittered_cholesky(matrix)
    return inverse_lower(factor), 2.0 * jnp.sum(jnp.log(jnp.diag(factor)))


def _loss_backward(kept, cotangent):
    root, white = kept
    a = white @ root
    return cotangent * 0.5 * (_gram(root) - a[:, None] * a), cotangent * a


gaussian_loss.defvjp(_loss_forward, _loss_backward)
