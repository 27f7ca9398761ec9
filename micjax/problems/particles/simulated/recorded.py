"""What is left of an image when it has been stored, grey levels and what a JPEG keeps of them, and
how it looks when it is enlarged, so that small particles are seen: its noise and its blocks too."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BLOCK_PX = 8
ENLARGED = 0.3  # of the images: looked at with a zoom of 2
# steps of the coefficients at a quality of 50 (ITU-T T.81, table K.1): about so, and symmetric
STEPS = 10.0 + 7.0 * np.add.outer(np.arange(BLOCK_PX), np.arange(BLOCK_PX))


def _cosines() -> np.ndarray:
    k, x = np.arange(BLOCK_PX), np.arange(BLOCK_PX) + 0.5
    waves = np.cos(np.pi / BLOCK_PX * np.outer(k, x)) * np.sqrt(2.0 / BLOCK_PX)
    waves[0] *= np.sqrt(0.5)
    return waves.astype(np.float32)


def stored(
    image: Float[Array, "y x"], levels: Float[Array, ""], coarse: Float[Array, ""]
) -> Float[Array, "y x"]:
    """Rounded to so many grey levels, and its cosines over squares of 8 x 8 pixels to whole steps.

    **Arguments:**

    - `levels`: from black to white.
    - `coarse`: how long the steps are over those of a quality of 50; 0: no compression.
    """
    low = image.min()
    step = (image.max() - low) / levels
    grey = jnp.round((image - low) / step)
    ny, nx = image.shape
    waves = _cosines()
    blocks = grey.reshape(ny // BLOCK_PX, BLOCK_PX, nx // BLOCK_PX, BLOCK_PX)
    wide = jnp.maximum(coarse, 1e-3) * STEPS.astype(np.float32) * levels / 255.0
    cosines = jnp.einsum("ky,aybx,lx->akbl", waves, blocks, waves)
    kept = jnp.round(cosines / wide[:, None, :]) * wide[:, None, :]
    back = jnp.einsum("ky,akbl,lx->aybx", waves, kept, waves).reshape(ny, nx)
    return low + step * jnp.where(coarse > 0.0, back, grey)


def halved(image: Float[Array, "y x"]) -> Float[Array, "v u"]:
    """Means of two by two pixels."""
    ny, nx = image.shape
    return image.reshape(ny // 2, 2, nx // 2, 2).mean(axis=(1, 3))


def enlarged(image: Float[Array, "v u"]) -> Float[Array, "y x"]:
    """Twice as many pixels along each edge, linear between those there are."""
    return jax.image.resize(image, [2 * n for n in image.shape], "linear")
