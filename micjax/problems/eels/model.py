"""The forward model of `micjax.problems.eels`: edges on a background, scattered again."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from micjax.core.problem import parameter
from micjax.physics.spectra.composed import SumOf
from micjax.physics.spectra.edges import LineShape, white_lines
from micjax.physics.spectra.line_shapes import erf_step, gaussian
from micjax.physics.spectra.plural import with_low_loss

Energies = Float[Array, " n"]


class CoreLoss(eqx.Module):
    """Edges, scattered again as the low loss of the pixel has it, on a background.

    - `low_loss`: `[m]`, channels as wide as those of the axis; `[0]` without one.
    - `exposure_ratio`: how long the edges were exposed over how long the low loss was.
    """

    background: eqx.Module
    edges: SumOf
    low_loss: Float[Array, " m"] = parameter(default=())
    zero_channel: int = eqx.field(static=True, default=0)
    exposure_ratio: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, energy_eV: Energies) -> Energies:
        single = self.edges(energy_eV)
        if self.low_loss.size:
            single = with_low_loss(single, self.low_loss, self.zero_channel)
        return self.background(energy_eV) + single


class FineEdge(eqx.Module):
    """A hydrogenic edge without white lines; its fine structure as Gaussians, which lie at equal
    distances behind the onset.

        y = amount sigma(E) (step + sum of fine heights times Gaussians)

    - `amount`: y per barn/eV.
    - `fine`: relative to the continuum, the last at `spacing_eV` (k - 1/2) behind the onset.
    """

    amount: Float[Array, ""] = parameter()
    onset_eV: Float[Array, ""] = parameter()
    fine: Float[Array, " k"] = parameter()
    fwhm_eV: Float[Array, ""] = parameter()
    spacing_eV: Float[Array, ""] = parameter()
    cross_section_barn_per_eV: Float[Array, " n"] = parameter()

    def __call__(self, energy_eV: Energies) -> Energies:
        step = erf_step(energy_eV, 1.0, self.onset_eV, self.fwhm_eV)
        places = self.onset_eV + self.spacing_eV * (jnp.arange(self.fine.size) + 0.5)
        bumps = gaussian(energy_eV, self.fine[:, None], places[:, None], self.spacing_eV)
        return self.amount * self.cross_section_barn_per_eV * (step + jnp.sum(bumps, axis=0))


class LEdge(eqx.Module):
    """White lines of a transition metal on a hydrogenic continuum that begins with them.

    - `amount`: of the continuum, y per barn/eV; `height`: of both lines together, in units of y.
    - `shape`: of the lines; the steps of the continuum are theirs.
    - the others: as of `micjax.physics.spectra.edges.white_lines`.
    """

    amount: Float[Array, ""] = parameter()
    height: Float[Array, ""] = parameter()
    onset_eV: Float[Array, ""] = parameter()
    splitting_eV: Float[Array, ""] = parameter()
    branching_ratio: Float[Array, ""] = parameter()
    fwhm_eV: Float[Array, ""] = parameter()
    fwhm_l2_eV: Float[Array, ""] = parameter()
    cross_section_barn_per_eV: Float[Array, " n"] = parameter()
    shape: LineShape = eqx.field(static=True, default="gaussian")

    def __call__(self, energy_eV: Energies) -> Energies:
        continuum = self.amount * self.cross_section_barn_per_eV
        return white_lines(
            energy_eV,
            self.height,
            self.onset_eV,
            self.splitting_eV,
            self.branching_ratio,
            self.fwhm_eV,
            self.fwhm_l2_eV,
            continuum,
            self.shape,
        )

    def l3_to_l2(self) -> Float[Array, ""]:
        """The ratio of the areas of the lines, which tells the valence of Mn, Fe, Co."""
        return self.branching_ratio / (1.0 - self.branching_ratio)
