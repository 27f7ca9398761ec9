"""X-ray spectra of an energy-dispersive detector: lines, bremsstrahlung, resolution. In keV."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from micjax.core.names import listed
from micjax.core.problem import parameter
from micjax.physics.spectra.atomic import x_ray_lines
from micjax.physics.spectra.line_shapes import GAUSSIAN_AREA, LN2
from micjax.physics.spectra.scales import Priors, scales, spread_over

Energies = Float[Array, " n"]
Number = Float[Array, "..."] | float

PAIR_KEV = 3.65e-3  # mean energy of an electron-hole pair in silicon at 90 K
FANO_SILICON = 0.12
SILICON_K_KEV = 1.740  # what escapes from a silicon detector
MANGANESE_KEV = 5.895  # the line at which resolutions are told


def detector_fwhm_keV(energy_keV: Number, noise_fwhm_keV: Number, fano: Number = FANO_SILICON):
    """sqrt(noise^2 + 8 ln 2 F eps E): electronics, and the counting of electron-hole pairs in
    silicon (Fano 1947, Phys. Rev. 72, 26; Goldstein et al. 2018, Scanning Electron Microscopy and
    X-Ray Microanalysis, 4th ed., eq. 16.2)."""
    pairs = 8.0 * LN2 * PAIR_KEV * fano * jnp.asarray(energy_keV)
    return jnp.sqrt(jnp.square(noise_fwhm_keV) + pairs)


def noise_fwhm_keV(manganese_fwhm_keV: Number, fano: Number = FANO_SILICON) -> Number:
    """The electronic noise of a detector of this width at Mn K alpha (5.895 keV), by which it is
    sold: 0.130 keV is 0.051 keV of noise."""
    pairs = 8.0 * LN2 * PAIR_KEV * fano * MANGANESE_KEV
    return jnp.sqrt(jnp.square(manganese_fwhm_keV) - pairs)


def x_ray_spectrum(
    energy_keV: Energies,
    line_energies_keV: Float[Array, " lines"],
    areas: Float[Array, " lines"],
    noise_keV: Number,
    fano: Number = FANO_SILICON,
    escape: Number = 0.0,
) -> Energies:
    """Gaussian lines as wide as the detector makes them, `areas` in y times keV.

    `escape`: the share of each line that appears 1.74 keV below it, 0.002 to 0.02 in silicon above
    its K edge (1.84 keV), nothing below (Reed & Ware 1972, J. Phys. E 5, 582). A whole number 0
    leaves the escape lines out of the program.
    """
    line_energies_keV, areas = jnp.asarray(line_energies_keV), jnp.asarray(areas)
    if not (isinstance(escape, int | float) and escape == 0):
        lost = jnp.where(line_energies_keV > 1.839, escape, 0.0) * areas
        line_energies_keV = jnp.concatenate([line_energies_keV, line_energies_keV - SILICON_K_KEV])
        areas = jnp.concatenate([areas - lost, lost])
    width = detector_fwhm_keV(jnp.maximum(line_energies_keV, 0.0), noise_keV, fano)
    heights = areas / (GAUSSIAN_AREA * width)
    u = (energy_keV[..., None] - line_energies_keV) / width
    return jnp.sum(heights * jnp.exp(-4.0 * LN2 * u**2), axis=-1)


def window_transmission(energy_keV: Energies, cutoff_keV: Number) -> Energies:
    """exp(-(cutoff / E)^3): photoelectric absorption away from edges (Bragg & Pierce 1914). The
    cutoff is where 1/e gets through: 1 keV for 8 um of beryllium, 0.2 to 0.4 keV for a thin
    polymer window, whose carbon edge is not in this model."""
    inside = energy_keV > 0.0
    ratio = cutoff_keV / jnp.where(inside, energy_keV, 1.0)
    return jnp.where(inside, jnp.exp(-(ratio**3)), 0.0)


def kramers(energy_keV: Energies, level: Number, beam_keV: Number, cutoff_keV: Number) -> Energies:
    """Bremsstrahlung level (E0 - E) / E behind a window, nothing above the beam energy (Kramers
    1923, Phil. Mag. 46, 836; `window_transmission`). `level` is that at half the beam energy."""
    inside = (energy_keV > 0.0) & (energy_keV < beam_keV)
    safe = jnp.where(inside, energy_keV, 1.0)
    photons = jnp.where(inside, level * (beam_keV - safe) / safe, 0.0)
    return photons * window_transmission(energy_keV, cutoff_keV)


def cliff_lorimer(counts: Float[Array, "elements ..."], k_factors: Float[Array, " elements"]):
    """Weight fractions of a thin specimen, c_i = k_i I_i / sum_j k_j I_j: neither absorption nor
    fluorescence within it (Cliff & Lorimer 1975, J. Microsc. 103, 203).

    **Arguments:**

    - `k_factors`: of each element for the lines of its counts; of a common factor nothing depends.
    """
    weights = k_factors.reshape(-1, *[1] * (counts.ndim - 1)) * counts
    return weights / jnp.sum(weights, axis=0)


class XRayFamily(eqx.Module):
    """The lines of one family of an element, their shares known and their sum `area`.

    `area` is in y times keV: counts times the width of a channel. Energies are measured as
    (1 + `gain_error`) E + `offset_keV`.
    """

    area: Float[Array, ""] = parameter()
    line_energies_keV: Float[Array, " lines"] = parameter()
    shares: Float[Array, " lines"] = parameter()
    noise_keV: Float[Array, ""] = parameter(default=0.051)
    fano: Float[Array, ""] = parameter(default=FANO_SILICON)
    offset_keV: Float[Array, ""] = parameter(default=0.0)
    gain_error: Float[Array, ""] = parameter(default=0.0)

    @classmethod
    def of(cls, symbol: str, family: str = "K", area: float = 1.0) -> "XRayFamily":
        """**Raises:** `ValueError` for an element or a family (K, L, M) not in the table."""
        lines = x_ray_lines(symbol)
        mine = [line for line in lines if line.family == family]
        if not mine:
            there = listed(dict.fromkeys(line.family for line in lines))
            raise ValueError(f"{symbol} has no family {family!r} in the table; there are {there}")
        shares = np.array([line.share for line in mine])
        return cls(area, [line.energy_keV for line in mine], shares / shares.sum())

    def __call__(self, energy_keV: Energies) -> Energies:
        centres = self.line_energies_keV * (1.0 + self.gain_error) + self.offset_keV
        areas = self.area * self.shares
        return x_ray_spectrum(energy_keV, centres, areas, self.noise_keV, self.fano)

    def priors(self, x: ArrayLike, y: ArrayLike) -> Priors:
        """A weak prior of the area, from nothing to four times a single line of the height of the
        data; calibration and resolution are those of the detector, and known."""
        width = detector_fwhm_keV(self.line_energies_keV, self.noise_keV, self.fano)
        return {"area": dist.HalfNormal(4.0 * scales(x, y).size * float(jnp.max(width)))}


class XRaySpectrum(eqx.Module):
    """Families of lines as one detector sees them, and bremsstrahlung: for its calibration.

    - `counts`: of each family, and of the bremsstrahlung on this axis.
    - `line_energies_keV`, `shares` `[family, line]`: of all lines; energies are measured as
        (1 + `gain_error`) E + `offset_keV`.
    """

    counts: Float[Array, " families"] = parameter()
    background_counts: Float[Array, ""] = parameter()
    line_energies_keV: Float[Array, " lines"] = parameter()
    shares: Float[Array, "families lines"] = parameter()
    beam_keV: Float[Array, ""] = parameter()
    noise_keV: Float[Array, ""] = parameter(default=0.051)
    offset_keV: Float[Array, ""] = parameter(default=0.0)
    gain_error: Float[Array, ""] = parameter(default=0.0)
    cutoff_keV: Float[Array, ""] = parameter(default=0.3)

    @classmethod
    def of(cls, families: Sequence[str], beam_keV: float, **detector: float) -> "XRaySpectrum":
        """Of families such as `Fe_K`. **Raises:** `ValueError` for one not in the table."""
        energies: list[float] = []
        shares = np.zeros((len(families), 0))
        for i, name in enumerate(families):
            family = XRayFamily.of(*name.split("_"))
            energies += np.asarray(family.line_energies_keV).tolist()
            own = np.zeros((len(families), family.shares.size))
            own[i] = np.asarray(family.shares)
            shares = np.concatenate([shares, own], axis=1)
        return cls(np.ones(len(families)), 1.0, energies, shares, beam_keV, **detector)

    def shapes(self, energy_keV: Energies) -> Float[Array, "families n"]:
        """Of each family the counts in each channel, of one count in all; bremsstrahlung last."""
        centres = self.line_energies_keV * (1.0 + self.gain_error) + self.offset_keV
        step = jnp.median(jnp.diff(energy_keV))  # some channels may be missing

        def of_one(shares):
            return step * x_ray_spectrum(energy_keV, centres, shares, self.noise_keV)

        true_keV = (energy_keV - self.offset_keV) / (1.0 + self.gain_error)
        smooth = kramers(true_keV, jnp.ones_like(self.beam_keV), self.beam_keV, self.cutoff_keV)
        smooth = smooth / jnp.maximum(jnp.sum(smooth), 1e-12)
        return jnp.concatenate([jax.vmap(of_one)(self.shares), smooth[None]])

    def __call__(self, energy_keV: Energies) -> Energies:
        counts = jnp.append(self.counts, self.background_counts)
        return counts @ self.shapes(energy_keV)


class Bremsstrahlung(eqx.Module):
    """A `kramers` background: `level` at half the beam energy, in units of y."""

    level: Float[Array, ""] = parameter()
    beam_keV: Float[Array, ""] = parameter()
    cutoff_keV: Float[Array, ""] = parameter(default=0.3)

    def __call__(self, energy_keV: Energies) -> Energies:
        return kramers(energy_keV, self.level, self.beam_keV, self.cutoff_keV)

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors; the cutoff from 0.05 to 2 keV. The beam energy is known."""
        return {"level": scales(x, y).height(), "cutoff_keV": spread_over(0.05, 2.0)}
