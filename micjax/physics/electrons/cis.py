"""exp(i x) of real x.

XLA's sine and cosine of single precision take 15 times as long on a CPU as the polynomials below
(Cody & Waite 1980 for the reduction to an eighth of a turn; the coefficients are those of Moshier's
Cephes library). Their error is 1.3e-7 for |x| below 1e4. Double precision takes XLA's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

# pi/2 in three parts, of which the first two have few digits: q times them is exact
_PARTS = (1.5703125, 4.837512969970703125e-4, 7.549789948768648e-8)
_SINE = (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
_COSINE = (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)


@jax.custom_jvp
def cis(x: Float[Array, "..."]) -> Complex[Array, "..."]:
    """cos x + i sin x."""
    if x.dtype != jnp.float32:
        return jax.lax.complex(jnp.cos(x), jnp.sin(x))
    quarters = jnp.round(x * jnp.float32(0.6366197723675814))
    r = x
    for part in _PARTS:
        r = r - quarters * jnp.float32(part)
    r2 = r * r
    s = r + r * r2 * _polynomial(_SINE, r2)
    c = 1.0 - 0.5 * r2 + r2 * r2 * _polynomial(_COSINE, r2)
    turn = quarters.astype(jnp.int32) & 3
    odd = (turn & 1) == 1
    sine, cosine = jnp.where(odd, c, s), jnp.where(odd, s, c)
    sine = jnp.where((turn & 2) != 0, -sine, sine)
    cosine = jnp.where(((turn + 1) & 2) != 0, -cosine, cosine)
    return jax.lax.complex(cosine, sine)


@cis.defjvp
def _derivative(primals, tangents):
    (x,), (dx,) = primals, tangents
    value = cis(x)
    return value, jax.lax.complex(-value.imag * dx, value.real * dx)


def _polynomial(coefficients, x):
    total = jnp.float32(coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + jnp.float32(c)
    return total
