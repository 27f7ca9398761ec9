"""The forward model of `micjax.problems.tip`: surfaces below one tip."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from micjax.core.problem import parameter
from micjax.physics.probes.lines import add_lines
from micjax.physics.tips.dilation import dilate
from micjax.physics.tips.shapes import AbstractTip, FreeForm


class Reshaped(eqx.Module):
    """A parametric tip and what a free-form estimate adds to it, pixel by pixel."""

    shape: AbstractTip
    residual_nm: Float[Array, "ky kx"] = parameter()

    def __call__(self) -> Float[Array, "ky kx"]:
        return self.shape() + self.residual_nm


class TipScan(eqx.Module):
    """Images of several surfaces taken with one tip. `x` says which of the surfaces to image."""

    surface_nm: Float[Array, "frames ny nx"] = parameter()
    tip: Reshaped | FreeForm
    line_offsets_nm: Float[Array, "frames ny"] = parameter()

    def __call__(self, x: Int[Array, " n"]) -> Float[Array, "n ny nx"]:
        tip = self.tip()
        images = jax.vmap(lambda s: dilate(s, tip))(self.surface_nm[x])
        return jax.vmap(add_lines)(images, self.line_offsets_nm[x])
