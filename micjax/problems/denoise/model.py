"""The forward model of `micjax.problems.denoise`: one image in frames that drift."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from micjax.core.problem import parameter


def shifted(image: Float[Array, "y x"], shift_px: Float[Array, "2"]) -> Float[Array, "y x"]:
    """image(r + shift), between pixels by cubic convolution (Keys 1981, a = -1/2); beyond an edge
    its last pixel goes on."""
    for axis in (0, 1):
        whole = jnp.floor(shift_px[axis])
        t = shift_px[axis] - whole
        weights = (
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t**2 + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t**2,
        )
        length = image.shape[axis]
        first = jnp.arange(length) + whole.astype(int) - 1
        image = sum(
            w * jnp.take(image, jnp.clip(first + i, 0, length - 1), axis=axis)
            for i, w in enumerate(weights)
        )
    return image


class DriftingFrames(eqx.Module):
    """Frames of the same sample, each moved against the image."""

    image: Float[Array, "y x"] = parameter()  # of the first frame, without noise
    drift_px: Float[Array, "m 2"] = parameter()  # (y, x): frame(r) = image(r + drift)
    pixel_A: tuple[float, float] | None = eqx.field(static=True)
    net: str | None = eqx.field(static=True)  # weights that the network begins with

    def __call__(self, frame: Int[Array, "n"]) -> Float[Array, "n y x"]:
        if len(self.drift_px) == 1:  # which is where the image is
            return jnp.broadcast_to(self.image, (len(frame), *self.image.shape))
        return jax.vmap(lambda d: shifted(self.image, d))(self.drift_px[frame])
