"""The forward model of `micjax.problems.particles`: a plateau for each instance."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from micjax.core.problem import parameter
from micjax.problems.particles.contrast import BLOCK_PX


class Plateaus(eqx.Module):
    """What lies on a background that changes slowly."""

    signal: Float[Array, "y x"] = parameter()  # the contrast of the instance there, else 0
    background: Float[Array, "gy gx"] = parameter()  # linear between points of a coarse grid
    pixel_nm: tuple[float, float] | None = eqx.field(static=True)
    polarity: str = eqx.field(static=True)
    net: str | None = eqx.field(static=True)
    labels: str | None = eqx.field(static=True)

    def __call__(self, x) -> Float[Array, "y x"]:
        ny, nx = self.signal.shape
        whole = tuple(n * BLOCK_PX for n in self.background.shape)
        return self.signal + jax.image.resize(self.background, whole, "linear")[:ny, :nx]
