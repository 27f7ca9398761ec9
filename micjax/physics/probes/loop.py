"""The height loop of a probe in contact, sample by sample.

    z[i+1] = max( h[i+1],  z[i] - P e[i] - I (e[i] + e[i-1] + ... of the last `window` errors) )
    e[i] = z[i] - h[i] - s

z is the height of the probe, h that of the surface, and s the set point: the deflection that the
loop holds. No probe goes into the surface, hence the maximum. This is the recursion of `real_PID`
in DTMicroscope (pycroscopy, MIT licence), whose integral gain is 1e4 times I.

Where the surface is flat z comes to h + s, and to a slope of c a sample the loop answers with the
error -c / (P + window I), as long as that is above -s. P alone takes the share 1 - P of an error to
the next sample; I alone is stable below 2 sin^2(pi / 2 window), 3.1e-3 for a window of 40, and
`stable` says it of both together.

`micjax.physics.probes.lines.feedback` is the linear controller of the textbooks, one step a pixel.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

Scalar = Float[ArrayLike, ""]

WINDOW = 40  # samples, as in DTMicroscope


def stable(proportional: float, integral: float, window: int = WINDOW) -> bool:
    """Whether an error dies away: every root of the recursion lies within the unit circle,

    z^w = (1 - P) z^(w-1) - I (z^(w-1) + z^(w-2) + ... + 1).
    """
    coefficients = np.full(window + 1, float(integral))
    coefficients[0] = 1.0
    coefficients[1] -= 1.0 - float(proportional)
    return bool(np.all(np.abs(np.roots(coefficients)) < 1.0))


def follow(
    height: Float[Array, "*lines n"],
    proportional: Scalar,
    integral: Scalar,
    set_point: Scalar = 0.0,
    window: int = WINDOW,
    start: Float[Array, "*lines"] | None = None,
) -> Float[Array, "*lines n"]:
    """The heights of a probe that runs along each line.

    The sum over the window takes two additions a sample, whatever its length. It is begun anew
    after every window, so that rounding does not pile up along a line.

    **Arguments:**

    - `height`: of the surface at each sample of each line, in any unit of length.
    - `proportional`, `integral`: P and I, of one sample, without unit.
    - `set_point`: in the unit of `height`.
    - `window`: samples that the integral goes over.
    - `start`: z[0]; by default the probe begins on the surface, as in DTMicroscope.

    **Returns:** z, in the precision of `height`. Differentiable.

    **Raises:** `ValueError` for a window of less than one sample.
    """
    if window < 1:
        raise ValueError(f"window = {window}: must be one sample or more")
    proportional, integral, set_point = (
        jnp.asarray(v, height.dtype) for v in (proportional, integral, set_point)
    )

    # with the error as the state, the surface comes in by its differences alone:
    # e[i+1] = max(-s, e[i] + h[i] - h[i+1] - P e[i] - I sum)
    def step(state, sample):
        error, total = state
        fall, gone = sample
        total = total + (error - gone)
        ahead = error + fall - proportional * error - integral * total
        return (jnp.maximum(-set_point, ahead), total), error

    def block(state, falls):
        error, before = state
        (error, _), errors = lax.scan(step, (error, jnp.sum(before, axis=0)), (falls, before))
        return (error, errors), errors

    *lines, n = height.shape
    start = height[..., 0] if start is None else start
    blocks = -(-n // window)
    falls = jnp.pad(-jnp.diff(height), [(0, 0)] * len(lines) + [(0, blocks * window - n + 1)])
    # all lines at once: each step works on one sample of every line
    falls = jnp.moveaxis(falls, -1, 0).reshape(blocks, window, *lines)
    state = start - height[..., 0] - set_point, jnp.zeros((window, *lines), height.dtype)
    _, errors = lax.scan(block, state, falls)
    errors = jnp.moveaxis(errors.reshape(-1, *lines)[:n], 0, -1)
    return jnp.maximum(height, height + set_point + errors)


def trace_and_retrace(
    height: Float[Array, "*lines n"],
    proportional: Scalar,
    integral: Scalar,
    set_point: Scalar = 0.0,
    *,
    samples_per_pixel: int = 1,
    window: int = WINDOW,
) -> tuple[Float[Array, "*lines n"], Float[Array, "*lines n"]]:
    """There and back along each line of pixels, in one loop that goes on at the turn.

    It begins settled, at the set point above the first pixel.

    **Arguments:**

    - `height`: of the surface at each pixel; between them it is straight.
    - `samples_per_pixel`: samples of the loop from one pixel to the next.
    - the others: as those of `follow`.

    **Returns:** `(trace, retrace)`, z at the pixels.
    """
    share = jnp.arange(samples_per_pixel, dtype=height.dtype) / samples_per_pixel
    legs = height[..., :-1, None] + share * jnp.diff(height)[..., None]
    there = jnp.concatenate([legs.reshape(*height.shape[:-1], -1), height[..., -1:]], axis=-1)
    way = jnp.concatenate([there, there[..., ::-1]], axis=-1)
    z = follow(way, proportional, integral, set_point, window, way[..., 0] + set_point)
    n = there.shape[-1]
    return z[..., :n:samples_per_pixel], z[..., n:][..., ::-1][..., ::samples_per_pixel]
