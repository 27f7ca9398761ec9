"""Abundances of known templates: least squares with a >= 0, and with a sum of one.

    min_a |x - a H|^2 / 2 + l1 sum(a),   a >= 0   (and sum(a) = 1)

of many patches at once, by cyclic coordinate descent on the Gram matrix H H^T (Franc, Hlavac &
Navara 2005). What it costs does not depend on how long the spectra are. Derivatives are implicit:
at the solution the active set is fixed, and the abundances in it solve a linear system (Barratt
2018, of differentiable quadratic programs); where an abundance is just about to enter, there is a
kink.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

TOLERANCE = 1e-6  # of the scaled residual of the optimality conditions, in single precision


def unmixed(
    patches: Float[Array, "p f"],
    templates: Float[Array, "k f"],
    l1: Float[Array, ""] | float = 0.0,
    *,
    whole: bool = False,
) -> Float[Array, "p k"]:
    """Abundances >= 0; with `whole` those of each patch add up to one (Heinz & Chang 2001)."""
    gram, products = templates @ templates.T, patches @ templates.T
    return (fully_constrained if whole else nonnegative)(gram, products - l1)


def residual(
    gram: Float[Array, "k k"], products: Float[Array, "p k"], a: Float[Array, "p k"]
) -> Float[Array, ""]:
    """How far the conditions of optimality (Karush, Kuhn & Tucker) are violated, over the largest
    product: the gradient where a > 0, and its negative part where a = 0."""
    gradient = a @ gram - products
    violated = jnp.where(a > 0.0, jnp.abs(gradient), jnp.maximum(-gradient, 0.0))
    return jnp.max(violated) / jnp.maximum(jnp.max(jnp.abs(products)), _tiny(products))


def _tiny(array):
    return jnp.finfo(array.dtype).tiny


def _tolerance(dtype) -> float:
    return TOLERANCE if dtype == jnp.float32 else 1e-12


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def nonnegative(
    gram: Float[Array, "k k"], products: Float[Array, "p k"], sweeps: int = 500
) -> Float[Array, "p k"]:
    """min a G a^T / 2 - b a^T, a >= 0, for each row b of `products`."""
    count = len(gram)
    diagonal = jnp.diag(gram)
    safe = jnp.where(diagonal > 0.0, diagonal, 1.0)

    def sweep(a):
        def coordinate(j, a):
            step = (products[:, j] - a @ gram[:, j]) / safe[j]
            return a.at[:, j].set(jnp.where(diagonal[j] > 0.0, jnp.maximum(a[:, j] + step, 0.0), 0))

        return jax.lax.fori_loop(0, count, coordinate, a)

    def goes_on(state):
        a, done = state
        return (done < sweeps) & (residual(gram, products, a) > _tolerance(products.dtype))

    start = jnp.maximum(products / safe, 0.0) / count
    a, _ = jax.lax.while_loop(goes_on, lambda s: (sweep(s[0]), s[1] + 1), (start, 0))
    return a


@nonnegative.defjvp
def _(sweeps, primals, tangents):
    gram, products = primals
    a = nonnegative(gram, products, sweeps)
    d_gram, d_products = tangents
    return a, _solved(gram, a > 0.0, d_products - a @ d_gram)


def _solved(gram, active: Bool[Array, "p k"], right) -> Float[Array, "p k"]:
    """Of the system of the active ones; the others stay 0."""
    both = active[:, :, None] & active[:, None, :]
    system = jnp.where(both, gram, jnp.eye(len(gram), dtype=gram.dtype))
    return jnp.linalg.solve(system, jnp.where(active, right, 0.0)[..., None])[..., 0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def fully_constrained(
    gram: Float[Array, "k k"], products: Float[Array, "p k"], sweeps: int = 2000
) -> Float[Array, "p k"]:
    """min a G a^T / 2 - b a^T, a >= 0, sum(a) = 1: accelerated projected gradients (Beck &
    Teboulle 2009, with the restart of O'Donoghue & Candes 2015)."""
    lipschitz = jnp.maximum(jnp.linalg.norm(gram, 2), _tiny(gram))
    on_simplex = jax.vmap(optax.projections.projection_simplex)

    def step(state):
        a, ahead, t, _, done = state
        new = on_simplex(ahead - (ahead @ gram - products) / lipschitz)
        back = jnp.sum((ahead - new) * (new - a), axis=1, keepdims=True) > 0.0
        further = jnp.where(back, 1.0, 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * t**2)))
        ahead = new + jnp.where(back, 0.0, (t - 1.0) / further) * (new - a)
        return new, ahead, further, jnp.max(jnp.abs(new - a)), done + 1

    def goes_on(state):
        return (state[-1] < sweeps) & (state[-2] > 0.1 * _tolerance(products.dtype))

    start = jnp.full_like(products, 1.0 / len(gram))
    begun = (start, start, jnp.ones_like(products[:, :1]), jnp.asarray(1.0, products.dtype), 0)
    return jax.lax.while_loop(goes_on, step, begun)[0]


@fully_constrained.defjvp
def _(sweeps, primals, tangents):
    gram, products = primals
    a = fully_constrained(gram, products, sweeps)
    d_gram, d_products = tangents
    right = d_products - a @ d_gram
    active = a > 0.0
    # the sum stays one: what the multiplier of the constraint takes off
    free, ones = (_solved(gram, active, v) for v in (right, jnp.ones_like(a)))
    multiplier = jnp.sum(free, axis=1) / jnp.sum(ones, axis=1)
    return a, free - multiplier[:, None] * ones
