"""Spectra as nonnegative mixtures of a few nonnegative end members, both unknown.

    min_{W, H >= 0} |X - W H|^2 / 2 + l1 rms(X) sum_k |w_k|_1 |h_k|_2

The penalty is that of abundances of end members of length 1: scaling does not evade it.
`HALS` (hierarchical alternating least squares: Cichocki & Phan 2009), `AcceleratedGradient`
(Nesterov steps in turn on W and H: Guan et al. 2012) and `Multiplicative` (Lee & Seung 2001, a
reference: slow) minimise the same and stop on the same residual. Sparsity can be imposed step by
step: `ramp` steps lead from l1 = 0 to l1.

What a step costs are its two products with X. Most steps do without: after one with the products
themselves, `between` more take those of their changes from the leading part of X, L R with a few
rows (a random range with one power iteration: Halko et al. 2011),

    X h^T ~ X h_0^T + L R (h - h_0)^T

so that nothing is left out where the steps come to rest. Where the residual turns out worse than
such steps expect, fewer follow, and in the end none.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Factors(NamedTuple):
    """X ~ W H, with rows of H of Euclidean length 1."""

    abundance: Float[Array, "p k"]
    template: Float[Array, "k f"]
    residual: Float[Array, ""]  # of the conditions of optimality, see `optimality`
    steps: Int[Array, ""]
    passes: Int[Array, ""]  # steps that took the products with X itself


class HALS(eqx.Module):
    """One end member after the other, each exactly; W several times for each product with X."""

    inner: int = eqx.field(static=True, default=2)

    def update(self, v, products, gram):
        """Rows `v` [k, n] nearer to the minimum of v^T gram v / 2 - v^T products."""

        def coordinate(i, v):
            j = i % len(v)
            step = (products[j] - gram[j] @ v) / _above(gram[j, j])
            return v.at[j].set(jnp.maximum(v[j] + step, 0.0))

        return jax.lax.fori_loop(0, self.inner * len(v), coordinate, v)


class AcceleratedGradient(eqx.Module):
    inner: int = eqx.field(static=True, default=5)

    def update(self, v, products, gram):
        lipschitz = _above(jnp.linalg.norm(gram, 2))

        def step(_, state):
            v, ahead, t = state
            new = jnp.maximum(ahead - (gram @ ahead - products) / lipschitz, 0.0)
            further = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * t**2))
            return new, new + (t - 1.0) / further * (new - v), further

        return jax.lax.fori_loop(0, self.inner, step, (v, v, jnp.ones((), v.dtype)))[0]


class Multiplicative(eqx.Module):
    def update(self, v, products, gram):
        return v * jnp.maximum(products, 0.0) / _above(gram @ v)


Method = HALS | AcceleratedGradient | Multiplicative


def _above(a):
    return jnp.maximum(a, jnp.finfo(a.dtype).tiny)


def optimality(data, w, h, l1=0.0) -> Float[Array, ""]:
    """The projected gradient in W and in H (rows of length 1) over |X|: 0 at a stationary point.

    The same for data in any unit; the part of H is divided by |W|, so that both are residuals of X.
    """
    v, h = _scaled(w.T, h)
    l1 = l1 * _unit_of(data)
    of_v = (h @ h.T) @ v - _with_rows(data, h) + l1
    of_h = (v @ v.T) @ h - _with_columns(data, v) + _pull(l1, v, h)
    return _residual(jnp.linalg.norm(data), v, h, of_v, of_h)


# Products of thin matrices as they lie in memory: with a transposed factor, which is what XLA makes
# of the plain expressions, they take three to ten times as long on a CPU.


def _with_rows(data, h) -> Float[Array, "k p"]:
    return jax.lax.optimization_barrier(data @ h.T).T


def _with_columns(data, v) -> Float[Array, "k f"]:
    return jax.lax.optimization_barrier(v.T).T @ data


def _residual(size, v, h, of_v, of_h) -> Float[Array, ""]:
    """Of the gradients in W and in H."""

    def projected(gradient, v):
        return jnp.sum(jnp.where(v > 0.0, gradient, jnp.minimum(gradient, 0.0)) ** 2)

    # divided before it is squared: the product of three amplitudes would leave single precision
    size = _above(size)
    of_h = projected(of_h / _above(jnp.linalg.norm(v)) / size, h)
    return jnp.sqrt(projected(of_v / size, v) + of_h)


def _pull(l1, v, h):
    """Of the penalty on rows of `h`, which are of length 1."""
    return l1 * jnp.sum(v, axis=1)[:, None] * h


def _unit_of(data):
    return jnp.sqrt(jnp.mean(data**2))


def _scaled(v, h):
    size = jnp.linalg.norm(h, axis=1)[:, None]
    return v * size, h / _above(size)


def _leading(
    data: Float[Array, "p f"], rank: int
) -> tuple[Float[Array, "r p"], Float[Array, "r f"]]:
    """L^T and R with L R near X."""
    rows = jax.random.normal(jax.random.key(0), (rank, data.shape[1]), data.dtype)
    for _ in range(2):
        left = jnp.linalg.qr(_with_rows(data, rows).T)[0].T
        rows = _with_columns(data, left)
    return left, rows


@eqx.filter_jit
def start(data: Float[Array, "p f"], count: int) -> tuple[Float[Array, "p k"], Float[Array, "k f"]]:
    """Positive parts of the leading singular vectors, zeros replaced by the mean (NNDSVDa:
    Boutsidis & Gallopoulos 2008).

    **Raises:** `ValueError` for more end members than spectra or channels.
    """
    if not 1 <= count <= min(data.shape):
        raise ValueError(
            f"{count} end members of {data.shape[0]} spectra with {data.shape[1]} channels: from 1 "
            f"to {min(data.shape)}"
        )
    # the smaller of the two Gram matrices has the singular vectors
    wide = data.shape[0] < data.shape[1]
    x = data.T if wide else data
    _, vectors = jnp.linalg.eigh(x.T @ x)
    right = vectors[:, ::-1][:, :count]
    left = x @ right  # with the singular values

    def positive(i):
        parts = [(jnp.maximum(s * left[:, i], 0), jnp.maximum(s * right[:, i], 0)) for s in (1, -1)]
        sizes = [jnp.linalg.norm(a) * jnp.linalg.norm(b) for a, b in parts]
        (a, b) = jax.tree.map(lambda p, q: jnp.where(sizes[0] >= sizes[1], p, q), *parts)
        size = jnp.maximum(*sizes)
        share = (
            jnp.sqrt(size) / _above(jnp.linalg.norm(a)),
            jnp.sqrt(size) / _above(jnp.linalg.norm(b)),
        )
        return a * share[0], b * share[1]

    pairs = [positive(i) for i in range(count)]
    w, h = (jnp.stack(side, axis=1) for side in zip(*pairs, strict=True))
    level = jnp.sqrt(jnp.mean(x) / count)
    w, h = (jnp.where(v > 0.0, v, 0.01 * level) for v in (w, h))
    return (h, w.T) if wide else (w, h.T)


@jax.jit
def factorise(
    data: Float[Array, "p f"],
    w: Float[Array, "p k"],
    h: Float[Array, "k f"],
    method: Method = HALS(),  # noqa: B008 - it is immutable
    *,
    held: Bool[Array, "k"] | None = None,
    l1: Float[Array, ""] | float = 0.0,
    ramp: Int[Array, ""] | int = 0,
    tolerance: Float[Array, ""] | float = 1e-4,
    steps: Int[Array, ""] | int = 1000,
    between: Int[Array, ""] | int = 100,
) -> Factors:
    """From `w` and `h` until the optimality is below the tolerance, or so many steps.

    End members that are `held` keep their directions. `between`: most steps from one product with
    the data to the next.
    """
    size, unit = jnp.linalg.norm(data), _unit_of(data)
    left, right = _leading(data, min(*data.shape, 2 * len(h) + 8))

    def step(v, h, products, of_v, done):
        """One step, what the next can begin with, and the residual of where each factor began."""
        now = unit * l1 * jnp.minimum(1.0, (done + 1.0) / jnp.maximum(ramp, 1))
        gram = h @ h.T
        slope = gram @ v - products + now
        new_v = method.update(v, products - now, gram)
        products, gram = of_v(new_v), new_v @ new_v.T
        pull = _pull(now, new_v, h)
        slope_h = gram @ h - products + pull
        new_h = method.update(h, products - pull, gram)
        if held is not None:
            new_h, slope_h = (
                jnp.where(held[:, None], a, b) for a, b in ((h, new_h), (0.0, slope_h))
            )
        return new_v, new_h, _residual(size, v, h, slope, slope_h), products

    def goes_on(state):
        _, _, residual, _, done, _, _ = state
        return (done < steps) & ((residual > tolerance) | (done < ramp))

    def outer(state):
        v, h, before, expected, done, few, passes = state
        of_h = _with_rows(data, h)
        new_v, new_h, residual, of_v = step(v, h, of_h, lambda v: _with_columns(data, v), done)
        worse = (residual > 2.0 * expected) & (residual > 0.5 * before)
        few = jnp.where(worse, few // 8, few)
        # what the leading part of X does not have of the products
        rest_h = of_h - _by(h, right, left)
        rest_v = of_v - _by(new_v, left, right)
        goal = jnp.maximum(NEARER * residual, 0.5 * tolerance)
        last = jnp.minimum(done + 1 + jnp.where(done < ramp, 0, few), steps)

        def inner(state):
            v, h, _, done = state
            v, h = _scaled(v, h)
            of_h = rest_h + _by(h, right, left)
            v, h, residual, _ = step(v, h, of_h, lambda v: rest_v + _by(v, left, right), done)
            return v, h, residual, done + 1

        def is_far(state):
            _, _, residual, done = state
            return (done < last) & (residual > goal)

        begun = new_v, new_h, residual, done + 1
        v, h, expected, done = jax.lax.while_loop(is_far, inner, begun)
        return *_scaled(v, h), residual, expected, done, few, passes + 1

    zero, far = jnp.asarray(0), jnp.asarray(jnp.inf, data.dtype)
    begun = *_scaled(w.T, h), far, far, zero, jnp.asarray(between), zero
    v, h, _, _, done, _, passes = jax.lax.while_loop(goes_on, outer, begun)
    return Factors(v.T, h, optimality(data, v.T, h, l1), done, passes)


NEARER = 0.03  # of the residual, until the products with X are taken again


def _by(rows, first, second):
    """Products of `rows` with the leading part of X, which is that of `first` and `second`."""
    return (rows @ first.T) @ second
