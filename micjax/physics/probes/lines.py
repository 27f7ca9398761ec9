"""What a scanner does to an image: drift, the feedback loop, line offsets and tilt, noise.

The order of an artefact chain is drift (of the surface below the tip), dilation by the tip,
feedback, line offsets, noise; it is undone backwards. Images are heights in nm, `[iy, ix]`, each
row one scan line, the rows one after another in time. All but the noise is differentiable.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

Image = Float[Array, "ny nx"]
Scalar = Float[ArrayLike, ""]


def add_lines(
    image: Image,
    offsets_nm: Float[Array, " ny"],
    slopes: Float[Array, " ny"] | None = None,
    pixel_nm: Scalar = 1.0,
) -> Image:
    """Each line lifted by its offset and tilted by its slope (nm per nm) about its middle.

    `pixel_nm` is the pixel size along the line; it matters for the slopes only.
    """
    lifted = image + offsets_nm[:, None]
    if slopes is None:
        return lifted
    nx = image.shape[1]
    x_nm = (jnp.arange(nx) - (nx - 1) / 2) * pixel_nm
    return lifted + slopes[:, None] * x_nm


def drift(surface: Image, pixels_per_line: Float[ArrayLike, "2"]) -> Image:
    """The surface as met by a tip under which it moves by (dy, dx) pixels during each line.

    Linear interpolation; beyond the border the surface goes on as its border pixel.
    """
    ny, nx = surface.shape
    dy, dx = jnp.asarray(pixels_per_line)
    time = jnp.arange(ny, dtype=surface.dtype)[:, None]
    # what is now below the tip stood at p - d t when the scan began
    y = time - dy * time + jnp.zeros((1, nx), surface.dtype)
    x = jnp.arange(nx, dtype=surface.dtype)[None, :] - dx * time
    return jax.scipy.ndimage.map_coordinates(surface, [y, x], order=1, mode="nearest")


def feedback(
    height: Image,
    proportional: Scalar,
    integral: Scalar,
) -> tuple[Image, Image]:
    """Trace and retrace of a height loop with a PI controller, one step a pixel.

    Velocity form (Astrom & Hagglund 1995, ch. 3): with the error e_t = height_t - z_t,

        z_{t+1} = z_t + integral e_t + proportional (e_t - e_{t-1}).

    The trace runs along +x, the retrace back along the same line, so that the lag shows with
    opposite sign in the two. integral = 1 without proportional follows with one pixel of delay.

    **Arguments:**

    - `height`: what an ideal loop would record, such as `dilate(surface, tip)`.
    - `proportional`, `integral`: gains; 0 < integral + 2 proportional < 2 is stable.

    **Returns:** `(trace, retrace)`, both `[iy, ix]` over the same positions.
    """

    def line(state, heights, back):
        def step(carry, h):
            z, before = carry
            e = h - z
            return (z + integral * e + proportional * (e - before), e), z

        return lax.scan(step, state, heights, reverse=back)

    proportional, integral = (jnp.asarray(g, height.dtype) for g in (proportional, integral))
    # all lines at once: each step of the scan works on one column of the image
    columns = height.T
    start = columns[0], jnp.zeros_like(columns[0])
    turn, trace = line(start, columns, False)
    _, retrace = line(turn, columns, True)
    return trace.T, retrace.T


def noise_nm(
    key: Key[Array, ""], shape: tuple[int, int], white_nm: float, pink_nm: float = 0.0
) -> Image:
    """White noise plus 1/f noise along the whole time of the scan, each of its rms in nm.

    1/f noise is what makes neighbouring lines stand at different heights.
    """
    white_key, pink_key = jax.random.split(key)
    n = shape[0] * shape[1]
    spectrum = jnp.fft.rfft(jax.random.normal(pink_key, (n,)))
    frequency = jnp.arange(spectrum.size).at[0].set(1)
    pink = jnp.fft.irfft((spectrum / jnp.sqrt(frequency)).at[0].set(0.0), n)
    pink = pink_nm * pink / jnp.std(pink)
    return white_nm * jax.random.normal(white_key, shape) + pink.reshape(shape)
