"""Counts as mixtures of a few end members under Poisson's law, all of them nonnegative.

    min_{W, H >= 0} sum_pf (lambda - x log lambda),  lambda = W H

which is Kullback and Leibler's divergence from the counts up to a constant. Where a count is zero
only the sums of W and H matter, so that what a step costs is in proportion to the counts that are
not zero: 3 % of the entries of a usual X-ray map. Newton steps in turn on W and H, each row with a
small matrix of its own; they are shortened so that none goes up (Nesterov & Nemirovskii 1994: the
logarithm is self-concordant). Multiplicative steps (Lee & Seung 2001) come first.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Bool, Float, Int, Shaped

LENGTH = 16  # of a row, in counts
BLOCK = 1024  # rows at a time: what is in memory does not grow with the data
MULTIPLICATIVE = 5  # steps at the start, where Newton's model is poor
LEAST = 1e-15  # counts that are expected: its square is still a number in single precision
SWEEPS = 8  # over the coordinates of the quadratic model of a row


class CountRows(NamedTuple):
    """Counts that are not zero, in rows of one length; an element may have any number of rows."""

    column: Int[Array, "b r m"]
    count: Float[Array, "b r m"]  # 0 where a row is not full
    of: Int[Array, "b r"]  # the element; as many as there are elements where a row is not used
    elements: Int[Array, ""]


class CountTable(NamedTuple):
    """The same counts spectrum by spectrum and channel by channel."""

    by_spectrum: CountRows
    by_channel: CountRows


class CountFactors(NamedTuple):
    """X ~ W H, with rows of H that add up to one: W is in counts."""

    abundance: Float[Array, "p k"]
    template: Float[Array, "k f"]
    residual: Float[Array, ""]  # share of all counts that the last step has moved
    steps: Int[Array, ""]


def count_table(counts: Shaped[np.ndarray, "p f"] | scipy.sparse.sparray) -> CountTable:
    """**Raises:** `ValueError` for counts below zero or not finite, and for none at all."""
    sparse = scipy.sparse.csr_array(counts)
    sparse.eliminate_zeros()
    if not (np.isfinite(sparse.data).all() and (sparse.data >= 0).all()):
        raise ValueError("counts have to be finite and not below zero")
    if sparse.nnz == 0:
        raise ValueError(f"no counts in {counts.shape[0]} spectra of {counts.shape[1]} channels")
    return CountTable(_rows(sparse), _rows(scipy.sparse.csr_array(sparse.T)))


def _rows(sparse: scipy.sparse.csr_array) -> CountRows:
    each = np.diff(sparse.indptr)
    rows = -(-each // LENGTH)
    block, padded = _rounded(int(rows.sum()))
    first = np.cumsum(rows) - rows
    element = np.repeat(np.arange(len(each)), each)
    within = np.arange(sparse.nnz) - sparse.indptr[element]
    at = first[element] + within // LENGTH, within % LENGTH
    column, count = np.zeros((padded, LENGTH), np.int32), np.zeros((padded, LENGTH), np.float32)
    column[at], count[at] = sparse.indices, sparse.data
    of = np.full(padded, len(each), np.int32)
    of[: rows.sum()] = np.repeat(np.arange(len(each)), rows)
    blocked = [a.reshape(-1, block, *a.shape[1:]) for a in (column, count, of)]
    return CountRows(*jax.device_put([*blocked, len(each)]))


def _rounded(rows: int) -> tuple[int, int]:
    """Rows of a block, and of all blocks: sizes that data like these have too, so that they find
    the program compiled; an eighth of them at most is for nothing."""
    block = min(BLOCK, 1 << (rows - 1).bit_length())
    blocks = -(-rows // block)
    step = 1 << max(0, blocks.bit_length() - 4)
    return block, -(-blocks // step) * step * block


def _over_rows(rows: CountRows, w, h, summary):
    """`summary(ratio, model, end members at the counts, row)` of each row, block by block."""
    members = h.T
    padded = jnp.concatenate([w, jnp.ones_like(w[:1])])

    def block(of):
        column, count, element = of
        at, own = members[column], padded[element]
        model = jnp.maximum(jnp.einsum("rmk,rk->rm", at, own), LEAST)
        return summary(count, model, at, element)

    return jax.lax.map(block, (rows.column, rows.count, rows.of))


def _summed(rows: CountRows, of_rows, elements: int):
    flat = of_rows.reshape(-1, of_rows.shape[-1])
    total = jax.ops.segment_sum(flat, rows.of.ravel(), elements + 1, indices_are_sorted=True)
    return total[:elements]


def _tiny(a):
    return jnp.finfo(a.dtype).tiny


def _multiplied(rows: CountRows, w, h):
    """A multiplicative step of W."""

    def ratio(count, model, at, element):
        return jnp.einsum("rm,rmk->rk", count / model, at)

    return w * _summed(rows, _over_rows(rows, w, h, ratio), len(w)) / _size(h)


def _size(h):
    return jnp.maximum(jnp.sum(h, axis=1), _tiny(h))


@jax.jit
def curvature(
    rows: CountRows, w: Float[Array, "p k"], h: Float[Array, "k f"]
) -> tuple[Float[Array, "p k"], Float[Array, "p k k"]]:
    """The gradient and the matrix of second derivatives in each row of W."""
    count = w.shape[1]

    def terms(x, model, at, element):
        ratio = x / model
        second = jnp.einsum("rm,rma,rmb->rab", ratio / model, at, at)
        first = jnp.einsum("rm,rmk->rk", ratio, at)
        return jnp.concatenate([first, second.reshape(len(x), -1)], axis=1)

    summed = _summed(rows, _over_rows(rows, w, h, terms), len(w))
    hessian = summed[:, count:].reshape(-1, count, count)
    return _size(h) - summed[:, :count], hessian


def _newton(rows: CountRows, w, h):
    """A Newton step of each row of W within W >= 0, as long as it surely goes down.

    With -d_f / lambda_f at most r along the step, 1 / (1 + r) of it minimises the bound that
    self-concordance gives.
    """
    gradient, hessian = curvature(rows, w, h)
    count = w.shape[1]
    trace = jnp.trace(hessian, axis1=1, axis2=2)[:, None, None]
    hessian = hessian + 1e-6 * trace * jnp.eye(count, dtype=w.dtype)
    diagonal = jnp.maximum(jnp.diagonal(hessian, axis1=1, axis2=2), _tiny(w))

    def coordinate(i, v):
        j = i % count
        slope = gradient[:, j] + jnp.einsum("pk,pk->p", hessian[:, j], v - w)
        return v.at[:, j].set(jnp.maximum(v[:, j] - slope / diagonal[:, j], 0.0))

    step = jax.lax.fori_loop(0, SWEEPS * count, coordinate, w) - w
    padded = jnp.concatenate([step, jnp.zeros_like(step[:1])])

    def fall(x, model, at, element):
        change = jnp.einsum("rmk,rk->rm", at, padded[element]) / model
        return jnp.max(jnp.where(x > 0.0, -change, 0.0), axis=1)

    falls = _over_rows(rows, w, h, fall).ravel()
    most = jax.ops.segment_max(falls, rows.of.ravel(), len(w) + 1, indices_are_sorted=True)[:-1]
    most = jnp.maximum(most, 0.0)  # elements without a count have no row
    return jnp.maximum(w + step / (1.0 + most)[:, None], 0.0)


def _normalised(w, h):
    size = _size(h)
    return w * size, h / size[:, None]


@jax.jit
def factorise_counts(
    table: CountTable,
    w: Float[Array, "p k"],
    h: Float[Array, "k f"],
    held: Bool[Array, "k"],
    *,
    tolerance: Float[Array, ""] | float = 1e-4,
    steps: Int[Array, ""] | int = 300,
) -> CountFactors:
    """From positive `w` and `h` until a step moves less than `tolerance` of all counts.

    End members that are `held` stay what they are.
    """
    by_spectrum, by_channel = table
    total = jnp.sum(by_spectrum.count)

    def goes_on(state):
        return (state[3] < steps) & (state[2] > tolerance)

    def step(state):
        w, h, _, done = state
        update = functools.partial(jax.lax.cond, done < MULTIPLICATIVE, _multiplied, _newton)
        new_w = update(by_spectrum, w, h)
        new_h = update(by_channel, h.T, new_w.T).T
        new_h = jnp.where(held[:, None], h, new_h)
        moved = jnp.sum(jnp.abs(new_w - w) * _size(h)) + jnp.sum(
            jnp.abs(new_h - h) * jnp.sum(new_w, axis=0)[:, None]
        )
        return *_normalised(new_w, new_h), moved / total, done + 1

    begun = (*_normalised(w, h), jnp.asarray(jnp.inf, w.dtype), jnp.asarray(0))
    w, h, residual, done = jax.lax.while_loop(goes_on, step, begun)
    return CountFactors(w, h, residual, done)


def divergence(
    counts: scipy.sparse.csr_array, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"]
) -> float:
    """Kullback & Leibler's, sum x log(x / lambda) - x + lambda, in double precision."""
    return float(np.sum(log_loss(counts, w, h)) + np.sum(_entropy(counts.data)))


def _entropy(x):
    return x * np.log(x) - x


def log_loss(
    counts: scipy.sparse.csr_array, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"]
) -> Float[np.ndarray, "p"]:
    """sum_f lambda - x log lambda of each spectrum, in double precision."""
    w, h = np.asarray(w, float), np.asarray(h, float)
    element = np.repeat(np.arange(len(w)), np.diff(counts.indptr))
    model = np.maximum(np.einsum("nk,kn->n", w[element], h[:, counts.indices]), LEAST)
    logs = np.bincount(element, counts.data * np.log(model), minlength=len(w))
    return w @ h.sum(axis=1) - logs
