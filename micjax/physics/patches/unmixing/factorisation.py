"""Spectra as nonnegative mixtures of a few nonnegative end members, both unknown.

    min_{W, H >= 0} |X - W H|^2 / 2 + l1 rms(X) sum_k |w_k|_1 |h_k|_2

The penalty is that of abundances of end members of length 1: scaling does not evade it.
`HALS` (hierarchical alternating least squares: Cichocki & Phan 2009), `AcceleratedGradient`
(Nesterov steps in turn on W and H: Guan et al. 2012) and `Multiplicative` (Lee & Seung 2001, a
reference: slow) minimise the same and stop on the same residual. Sparsity can be imposed step by
step: `ramp` steps lead from l1 = 0 to l1.
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
    misfit: Float[Array, ""]  # |X - W H| / |X|
    steps: Int[Array, ""]


class HALS(eqx.Module):
    """One end member after the other, each exactly; W several times for each product with X."""

    inner: int = eqx.field(static=True, default=3)

    def update(self, v, products, gram):
        def coordinate(i, v):
            j = i % v.shape[1]
            step = (products[:, j] - v @ gram[:, j]) / _above(gram[j, j])
            return v.at[:, j].set(jnp.maximum(v[:, j] + step, 0.0))

        return jax.lax.fori_loop(0, self.inner * v.shape[1], coordinate, v)


class AcceleratedGradient(eqx.Module):
    inner: int = eqx.field(static=True, default=5)

    def update(self, v, products, gram):
        lipschitz = _above(jnp.linalg.norm(gram, 2))

        def step(_, state):
            v, ahead, t = state
            new = jnp.maximum(ahead - (ahead @ gram - products) / lipschitz, 0.0)
            further = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * t**2))
            return new, new + (t - 1.0) / further * (new - v), further

        return jax.lax.fori_loop(0, self.inner, step, (v, v, jnp.ones((), v.dtype)))[0]


class Multiplicative(eqx.Module):
    def update(self, v, products, gram):
        return v * jnp.maximum(products, 0.0) / _above(v @ gram)


Method = HALS | AcceleratedGradient | Multiplicative


def _above(a):
    return jnp.maximum(a, jnp.finfo(a.dtype).tiny)


def optimality(data, w, h, l1=0.0) -> Float[Array, ""]:
    """The projected gradient in W and in H (rows of length 1) over |X|: 0 at a stationary point.

    The same for data in any unit; the part of H is divided by |W|, so that both are residuals of X.
    """
    h, w = _scaled(h, w)
    l1 = l1 * _unit_of(data)
    of_w = w @ (h @ h.T) - data @ h.T + l1
    of_h = (w.T @ w) @ h - w.T @ data + _pull(l1, w, h)
    return _residual(jnp.linalg.norm(data), w, h, of_w, of_h)


def _residual(size, w, h, of_w, of_h) -> Float[Array, ""]:
    """Of the gradients in W and in H."""

    def projected(gradient, v):
        return jnp.sum(jnp.where(v > 0.0, gradient, jnp.minimum(gradient, 0.0)) ** 2)

    # divided before it is squared: the product of three amplitudes would leave single precision
    size = _above(size)
    of_h = projected(of_h / _above(jnp.linalg.norm(w)) / size, h)
    return jnp.sqrt(projected(of_w / size, w) + of_h)


def _pull(l1, w, h):
    """Of the penalty on rows of `h`, which are of length 1."""
    return l1 * jnp.sum(w, axis=0)[:, None] * h


def _unit_of(data):
    return jnp.sqrt(jnp.mean(data**2))


def _scaled(h, w):
    size = jnp.linalg.norm(h, axis=1)
    return h / _above(size)[:, None], w * size


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


@eqx.filter_jit
def factorise(
    data: Float[Array, "p f"],
    w: Float[Array, "p k"],
    h: Float[Array, "k f"],
    method: Method = HALS(),  # noqa: B008 - it is immutable
    *,
    held: Bool[Array, "k"] | None = None,
    l1: Float[Array, ""] | float = 0.0,
    ramp: int = 0,
    tolerance: Float[Array, ""] | float = 1e-4,
    steps: int = 1000,
) -> Factors:
    """From `w` and `h` until the optimality is below the tolerance, or so many steps.

    End members that are `held` keep their directions.
    """
    unit = _unit_of(data)

    def goes_on(state):
        w, h, residual, done = state
        return (done < steps) & ((residual > tolerance) | (done < ramp))

    def step(state):
        w, h, _, done = state
        now = unit * l1 * jnp.minimum(1.0, (done + 1.0) / max(ramp, 1))
        h, w = _scaled(h, w)
        products, gram = data @ h.T - now, h @ h.T
        of_w = w @ gram - products
        new_w = method.update(w, products, gram)
        products, gram = data.T @ new_w - _pull(now, new_w, h).T, new_w.T @ new_w
        of_h = gram @ h - products.T
        new_h = method.update(h.T, products, gram).T
        if held is not None:
            new_h, of_h = (jnp.where(held[:, None], v, u) for v, u in ((h, new_h), (0.0, of_h)))
        # of where each began, which costs no product with the data of its own
        residual = _residual(jnp.linalg.norm(data), w, h, of_w, of_h)
        return new_w, new_h, residual, done + 1

    begun = w, h, jnp.asarray(jnp.inf, data.dtype), jnp.asarray(0)
    w, h, _, done = jax.lax.while_loop(goes_on, step, begun)
    h, w = _scaled(h, w)
    misfit = jnp.linalg.norm(data - w @ h) / _above(jnp.linalg.norm(data))
    return Factors(w, h, optimality(data, w, h, l1), misfit, done)
