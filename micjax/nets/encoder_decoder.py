"""The surroundings of a pixel -> a spectrum (im2spec: Kalinin 2021, arXiv 2103.12165)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from micjax.nets.layers import conv


class ImageToSpectrum(nnx.Module):
    """Patches of an image -> the spectrum in their middle, with its standard deviation.

    What is around the middle is weighed with a Gaussian, whose width is learned as well: a crop
    without an edge. A few numbers pass on to the spectrum, next to them the middle pixel itself.

    **Arguments:**

    - `points`: of a spectrum.
    - `channels`: of the image.
    - `width`: channels of the convolutions, and of the layers a quarter.
    - `latent`: numbers that a spectrum is made of.
    - `window_px`: standard deviation of the Gaussian to begin with.
    """

    def __init__(
        self,
        points: int,
        channels: int = 1,
        *,
        width: int = 16,
        latent: int = 8,
        window_px: float = 0.5,
        rngs: nnx.Rngs,
    ):
        kind = jnp.result_type(float)

        def linear(cin: int, cout: int) -> nnx.Linear:
            return nnx.Linear(cin, cout, param_dtype=kind, rngs=rngs)

        self.log_window = nnx.Param(jnp.log(jnp.asarray(window_px, kind)))
        self.conv_1, self.conv_2 = conv(channels, width, rngs), conv(width, width, rngs)
        self.encode = nnx.List([linear(2 * width + channels, 4 * width), linear(4 * width, latent)])
        self.decode = nnx.List([linear(latent, 4 * width), linear(4 * width, 2 * points)])

    @property
    def window_px(self) -> Float[Array, ""]:
        return jnp.exp(self.log_window[...])

    def __call__(
        self, patches: Float[Array, "*b p p c"]
    ) -> tuple[Float[Array, "*b e"], Float[Array, "*b e"]]:
        """**Returns:** mean and standard deviation. **Raises:** `ValueError` for even edges."""
        edge = patches.shape[-2]
        if edge % 2 == 0:
            raise ValueError(f"patches of {edge} pixels: an odd number has a middle")
        h = nnx.gelu(self.conv_2(nnx.gelu(self.conv_1(patches))))
        r = jnp.arange(edge) - edge // 2
        weight = jnp.exp(-0.5 * (r[:, None] ** 2 + r**2) / self.window_px**2)
        around = jnp.einsum("...ijc,ij->...c", h, weight / weight.sum())
        middle = (..., edge // 2, edge // 2, slice(None))
        h = jnp.concatenate([around, h[middle], patches[middle]], axis=-1)
        for first, second in (self.encode, self.decode):
            h = second(nnx.gelu(first(h)))
        mean, log_sd = jnp.split(h.astype(patches.dtype), 2, axis=-1)
        return mean, jnp.exp(log_sd)
