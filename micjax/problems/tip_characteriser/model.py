"""The forward model of `micjax.problems.tip_characteriser`: known surfaces below one tip."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from micjax.core.problem import parameter
from micjax.physics.tips.dilation import dilate
from micjax.physics.tips.shapes import Double


class CharacteriserScan(eqx.Module):
    """Scans of known surfaces with one tip. `x` says which of the surfaces to image.

    `height_nm` is where the scan's zero stands above that of the surface.
    """

    surface_nm: Float[Array, "frames ny nx"] = parameter()
    tip: Double
    height_nm: Float[Array, ""] = parameter(default=0.0)

    def __call__(self, x: Int[Array, " n"]) -> Float[Array, "n ny nx"]:
        tip = self.tip()
        return jax.vmap(lambda s: dilate(s, tip))(self.surface_nm[x]) + self.height_nm
