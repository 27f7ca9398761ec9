"""Ionisation edges in electron energy-loss spectra.

Hydrogenic cross-sections of K and L2,3 shells after the programs SIGMAK3 and SIGMAL3 of Egerton
(2011, Electron Energy-Loss Spectroscopy in the Electron Microscope, 3rd ed., appendix B; theory in
secs. 3.2.2 and 3.6.1), and the white lines of transition metals.

The hydrogenic cross-section at an energy loss depends on the element and the microscope alone, not
on where the edge begins: an edge keeps its cross-section on the axis of the spectra, computed once,
and what a fit moves is the step that it is multiplied with.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from micjax.core.problem import parameter
from micjax.physics.spectra.atomic import atomic_number, edge_energy_eV
from micjax.physics.spectra.line_shapes import arctan_step, erf_step, gaussian, lorentzian
from micjax.physics.spectra.scales import Priors, scales, spread_over

Energies = Float[Array, " n"]
Number = Float[Array, ""] | float

LineShape = Literal["lorentzian", "gaussian"]

LINE_SHAPES = {"lorentzian": (lorentzian, arctan_step), "gaussian": (gaussian, erf_step)}
RYDBERG_EV = 13.605693
REST_EV = 510998.95  # m c^2 of the electron
BARN = 4.0 * np.pi * 0.529177211e-10**2 * 1e28  # 4 pi a0^2

# screening exponents of the L cross-section of Egerton, from Na to Kr; 0.1 beyond
L_EXPONENTS = (
    [0.82, 0.52, 0.52, 0.42, 0.30, 0.29, 0.22, 0.30, 0.22, 0.16, 0.12, 0.13, 0.13]
    + [0.14, 0.16, 0.18, 0.19, 0.22, 0.14, 0.11, 0.12, 0.12, 0.12, 0.10, 0.10, 0.10]
)  # fmt: skip
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def _phase(k2: Array, twice: float, rest: Array) -> Array:
    """exp(-2/k arctan(twice k / rest)), or exp(-1/k ln((rest + twice k)/(rest - twice k))) with
    k = sqrt(-k2) below the hydrogenic limit: one analytic function of k2, near 0 by its series."""
    u = k2 * jnp.square(twice / rest)
    near = (jnp.abs(u) < 0.03) & (k2 < 0.1)
    k = jnp.sqrt(jnp.where(near, 1.0, jnp.abs(k2)))
    below = (k2 < 0.0) & ~near
    gap = jnp.where(below, rest - twice * k, 1.0)  # positive below the limit only
    under = jnp.log1p(2.0 * twice * k / gap) / k
    over = 2.0 * jnp.arctan2(twice * k, rest) / k
    series = 2.0 * twice / rest * (1.0 + u * (-1.0 / 3.0 + u * (0.2 + u * (-1.0 / 7.0))))
    return jnp.exp(-jnp.where(near, series, jnp.where(below, under, over)))


def _normalisation(k2: Array) -> Array:
    """1 - exp(-2 pi / k), 1 below the hydrogenic limit."""
    k = jnp.sqrt(jnp.maximum(jnp.abs(k2), 1e-4))
    return jnp.where(k2 < 0.0, 1.0, -jnp.expm1(-2.0 * np.pi / k))


def k_strength_per_eV(energy_eV: Array, q2: Array, Z: Number) -> Array:
    """Generalised oscillator strength df/dE of the K shell (Egerton 2011, eqs. 3.125 to 3.128).

    **Arguments:**

    - `q2`: the momentum transfer, (q a0)^2.
    - `Z`: atomic number, 2 or more; screened by half an electron.
    """
    charge = Z - 0.5
    q = q2 / charge**2
    k2 = energy_eV / (RYDBERG_EV * charge**2) - 1.0
    wave = _phase(k2, 2.0, q + 1.0 - k2) / _normalisation(k2)
    bottom = ((q - k2 + 1.0) ** 2 + 4.0 * k2) ** 3 * (RYDBERG_EV * charge**2) ** 2
    return 256.0 * energy_eV * wave * (q + k2 / 3.0 + 1.0 / 3.0) / bottom


def l_strength_per_eV(
    energy_eV: Array, q2: Array, Z: Number, exponent: Number, l3_eV: Number, l1_eV: Number
) -> Array:
    """Generalised oscillator strength df/dE of the L shell: of 2p below the L1 edge, of 2s and 2p
    above it, scaled by the empirical factor ((E + 0.1 - E_L3) / (1.8 Z^2))^exponent (Egerton 2011,
    appendix B, SIGMAL3; Choi, Merzbacher & Khandelwal 1973, Atomic Data 5, 291)."""
    charge = Z - 4.15  # 0.35 for each of the seven others of the shell, 0.85 for each 1s
    q = q2 / charge**2
    k2 = energy_eV / (RYDBERG_EV * charge**2) - 0.25
    wave = _phase(k2, 1.0, q + 0.25 - k2) / _normalisation(k2)
    size = (q - k2 + 0.25) ** 2 + k2
    p_shell = 2.25 * q**4 - (0.75 + 3.0 * k2) * q**3
    p_shell += (0.59375 - 0.75 * k2 - 0.5 * k2**2) * q**2
    p_shell += (0.11146 + 0.85417 * k2 + 1.8833 * k2**2 + k2**3) * q
    p_shell += 0.0035807 + k2 / 21.333 + k2**2 / 4.5714 + k2**3 / 2.4 + k2**4 / 4.0
    shell = q**3 - (5.0 / 3.0 * k2 + 11.0 / 12.0) * q**2
    shell += (k2**2 / 3.0 + 1.5 * k2 + 65.0 / 48.0) * q
    shell += k2**3 / 3.0 + 0.75 * k2**2 + 23.0 / 48.0 * k2 + 5.0 / 64.0
    shape = jnp.where(energy_eV <= l1_eV, p_shell / size, shell) / size**4
    # below the edge the factor stays what it is at the edge
    rise = (jnp.maximum(energy_eV - l3_eV, 0.0) + 0.1) / (1.8 * Z**2)
    screening = jnp.exp(exponent * jnp.log(rise))
    return 32.0 * screening * shape * wave * energy_eV / (RYDBERG_EV * charge**2) ** 2


def over_angles_barn_per_eV(
    strength: Callable[[Array, Array], Array],
    energy_eV: Energies,
    energy_keV: Number,
    semiangle_mrad: Number,
) -> Energies:
    """d sigma / dE = 4 pi a0^2 (R/T) (R/E) times the integral of df/dE over d ln (q a0)^2, from
    the smallest momentum transfer to that at the collection semiangle (Egerton 2011, eqs. 3.144 to
    3.151; T = m v^2 / 2). Gauss-Legendre with 24 points in ln q."""
    gamma = 1.0 + 1e3 * energy_keV / REST_EV
    T = REST_EV * (1.0 - gamma**-2) / 2.0
    per_T = energy_eV / T
    least = per_T * energy_eV / (4.0 * RYDBERG_EV) * (1.0 + per_T / (2.0 * gamma**3))
    before = T / (RYDBERG_EV * (1.0 - 2.0 * T / REST_EV))  # (k0 a0)^2
    after = before - energy_eV / RYDBERG_EV * (gamma - energy_eV / (2.0 * REST_EV))
    across = 4.0 * jnp.sqrt(before * after) * jnp.sin(semiangle_mrad / 2e3) ** 2
    half = jnp.log1p(across / least) / 2.0
    nodes = jnp.asarray(NODES, energy_eV.dtype)[:, None]
    q2 = least * jnp.exp(half * (1.0 + nodes))
    weights = jnp.asarray(WEIGHTS, energy_eV.dtype)
    integral = half * jnp.einsum("k,kn->n", weights, strength(energy_eV, q2))
    return BARN * (RYDBERG_EV / T) * (RYDBERG_EV / energy_eV) * integral


@jax.jit
def k_cross_section_barn_per_eV(
    energy_eV: Energies, Z: Number, energy_keV: Number, semiangle_mrad: Number
) -> Energies:
    """Of a K shell, as if the edge began below the axis. See `over_angles_barn_per_eV`."""
    strength = functools.partial(k_strength_per_eV, Z=Z)
    return over_angles_barn_per_eV(strength, energy_eV, energy_keV, semiangle_mrad)


@jax.jit
def l_cross_section_barn_per_eV(
    energy_eV: Energies,
    Z: Number,
    exponent: Number,
    l3_eV: Number,
    l1_eV: Number,
    energy_keV: Number,
    semiangle_mrad: Number,
) -> Energies:
    """Of an L shell, as if the edge began below the axis. See `over_angles_barn_per_eV`."""
    strength = functools.partial(
        l_strength_per_eV, Z=Z, exponent=exponent, l3_eV=l3_eV, l1_eV=l1_eV
    )
    return over_angles_barn_per_eV(strength, energy_eV, energy_keV, semiangle_mrad)


def cross_section_barn_per_eV(
    symbol: str,
    shell: str,
    energy_eV: ArrayLike,
    energy_keV: float,
    semiangle_mrad: float,
    onset_eV: float | None = None,
) -> Energies:
    """d sigma / dE of an atom, in barn/eV, without the step at the edge.

    **Arguments:**

    - `shell`: "K", or "L3" for all of the L shell as it comes in: 2p, above the L1 edge 2s too.
    - `energy_eV`: energy losses, all positive.
    - `energy_keV`, `semiangle_mrad`: of the beam, and of the collection (`effective_semiangle_mrad`
        where the beam converges).
    - `onset_eV`: of L3, by default that of the table; the L1 edge moves with it.

    **Raises:** `ValueError` for another shell, an element without it, or losses <= 0.
    """
    if shell not in ("K", "L3"):
        raise ValueError(f"shell {shell!r}: hydrogenic cross-sections are those of 'K' and 'L3'")
    axis = jnp.asarray(energy_eV, float)
    if not np.min(np.asarray(axis)) > 0:
        raise ValueError("energy losses must be positive")
    Z, table = atomic_number(symbol), edge_energy_eV(symbol, shell)
    if shell == "K":
        return k_cross_section_barn_per_eV(axis, float(Z), energy_keV, semiangle_mrad)
    if Z < 11:
        raise ValueError(f"{symbol}: hydrogenic L cross-sections begin with Na")
    l3 = table if onset_eV is None else onset_eV
    l1 = edge_energy_eV(symbol, "L1") - table + l3
    exponent = L_EXPONENTS[Z - 11] if Z - 11 < len(L_EXPONENTS) else 0.1
    return l_cross_section_barn_per_eV(axis, float(Z), exponent, l3, l1, energy_keV, semiangle_mrad)


def effective_semiangle_mrad(
    energy_eV: float, energy_keV: float, convergence_mrad: float, collection_mrad: float
) -> float:
    """The collection semiangle which with a parallel beam gives the same signal at this energy loss
    as a convergent one (Scheinfein & Isaacson 1984; Egerton 2011, appendix B, CONCOR2)."""
    if convergence_mrad == 0:
        return collection_mrad
    gamma = 1.0 + 1e3 * energy_keV / REST_EV
    characteristic = energy_eV / (energy_keV * (1.0 + gamma) / (2.0 * gamma))  # mrad
    a2, b2, t2 = (np.square(1e-3 * v) for v in (convergence_mrad, collection_mrad, characteristic))
    root = np.sqrt((a2 + b2 + t2) ** 2 - 4.0 * a2 * b2) - a2 - b2 - t2
    first = (
        2.0
        * b2
        * np.log((np.hypot(a2 + t2 - b2, 2.0 * np.sqrt(b2 * t2)) + a2 + t2 - b2) / (2 * t2))
    )
    other = (
        2.0
        * a2
        * np.log((np.hypot(b2 + t2 - a2, 2.0 * np.sqrt(a2 * t2)) + b2 + t2 - a2) / (2 * t2))
    )
    collected = np.log1p(b2 / t2)
    share = (root + first + other) / (2.0 * a2 * collected)
    if convergence_mrad > collection_mrad:
        share *= a2 / b2
    return float(characteristic * np.sqrt(np.expm1(share * collected)))


def white_lines(
    energy_eV: Energies,
    height: Number,
    onset_eV: Number,
    splitting_eV: Number,
    branching_ratio: Number,
    fwhm_eV: Number,
    fwhm_l2_eV: Number,
    step: Number | Energies,
    shape: LineShape = "lorentzian",
) -> Energies:
    """L3 and L2 of a transition metal: two lines on two steps of 2 : 1; Lorentzians on arctan steps
    where the lifetime of the hole decides, Gaussians on error functions where resolution and
    multiplets do.

    `height` is the sum of both lines' heights, `branching_ratio` the share of L3 in the two areas
    (2/3 by statistics), `step` the height of the continuum behind both (Leapman, Grunes & Fejes
    1982, Phys. Rev. B 26, 614; Pearson, Ahn & Fultz 1993, Phys. Rev. B 47, 8471).
    """
    l2_eV = onset_eV + splitting_eV
    l3_height = branching_ratio / fwhm_eV
    l2_height = (1.0 - branching_ratio) / fwhm_l2_eV
    scale = height / (l3_height + l2_height)
    line, rise = LINE_SHAPES[shape]
    lines = line(energy_eV, l3_height * scale, onset_eV, fwhm_eV)
    lines += line(energy_eV, l2_height * scale, l2_eV, fwhm_l2_eV)
    steps = rise(energy_eV, 2.0 / 3.0 * step, onset_eV, fwhm_eV)
    return lines + steps + rise(energy_eV, step / 3.0, l2_eV, fwhm_l2_eV)


class IonisationEdge(eqx.Module):
    """A hydrogenic edge with fine structure, on the axis for which it was made.

        y = amount (sigma(E) step((E - onset) / fwhm) + sum of Gaussians at onset + offsets)

    The resolution `fwhm_eV` rounds the step; sigma, which changes slowly, is not convolved.
    `amount` is y per barn/eV: atoms per area (in 1/barn) times the intensity of the low loss times
    the width of a channel. `fine_heights` are in barn/eV, of Gaussians `fine_fwhm_eV` wide.
    """

    amount: Float[Array, ""] = parameter()
    onset_eV: Float[Array, ""] = parameter()
    fwhm_eV: Float[Array, ""] = parameter()
    cross_section_barn_per_eV: Float[Array, " n"] = parameter()
    fine_heights: Float[Array, " k"] = parameter(default=())
    fine_offsets_eV: Float[Array, " k"] = parameter(default=())
    fine_fwhm_eV: Float[Array, ""] = parameter(default=2.0)

    @classmethod
    def of(
        cls,
        symbol: str,
        shell: str,
        energy_eV: ArrayLike,
        energy_keV: float,
        semiangle_mrad: float,
        *,
        onset_eV: float | None = None,
        fwhm_eV: float = 1.0,
        fine_offsets_eV: Sequence[float] = (),
    ) -> "IonisationEdge":
        """The edge of an element, with an amount of 1 and no fine structure yet. Arguments and
        errors are those of `cross_section_barn_per_eV`."""
        sigma = cross_section_barn_per_eV(
            symbol, shell, energy_eV, energy_keV, semiangle_mrad, onset_eV
        )
        onset = edge_energy_eV(symbol, shell) if onset_eV is None else onset_eV
        heights = np.zeros(len(fine_offsets_eV))
        return cls(1.0, onset, fwhm_eV, sigma, heights, np.array(fine_offsets_eV, float))

    def __call__(self, energy_eV: Energies) -> Energies:
        """**Raises:** `ValueError` for an axis of another length."""
        if energy_eV.shape != self.cross_section_barn_per_eV.shape:
            raise ValueError(
                f"the edge was made for {self.cross_section_barn_per_eV.shape} energies, "
                f"not for {energy_eV.shape}"
            )
        total = self.cross_section_barn_per_eV * erf_step(
            energy_eV, 1.0, self.onset_eV, self.fwhm_eV
        )
        if self.fine_heights.size:
            centres = (self.onset_eV + self.fine_offsets_eV)[:, None]
            peaks = gaussian(energy_eV, self.fine_heights[:, None], centres, self.fine_fwhm_eV)
            total = total + jnp.sum(peaks, axis=0)
        return self.amount * total

    def priors(self, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors: the onset about where it is, +- 3 eV, the resolution 0.1 to 10 eV, fine
        heights of either sign of the size of the cross-section."""
        largest = float(jnp.max(jnp.where(x >= self.onset_eV, self.cross_section_barn_per_eV, 0.0)))
        sigma = largest or float(jnp.max(self.cross_section_barn_per_eV))
        priors = {
            "amount": dist.HalfNormal(2.0 * scales(x, y).size / sigma),
            "onset_eV": dist.Normal(float(self.onset_eV), 3.0),
            "fwhm_eV": spread_over(0.1, 10.0),
        }
        return priors | (
            {"fine_heights": dist.Normal(0.0, sigma)} if self.fine_heights.size else {}
        )


class WhiteLines(eqx.Module):
    """The `white_lines` of a transition metal; chemical shifts move `onset_eV`, the L3 line."""

    height: Float[Array, ""] = parameter()
    onset_eV: Float[Array, ""] = parameter()
    splitting_eV: Float[Array, ""] = parameter()
    branching_ratio: Float[Array, ""] = parameter(default=2.0 / 3.0)
    fwhm_eV: Float[Array, ""] = parameter(default=3.0)
    fwhm_l2_eV: Float[Array, ""] = parameter(default=3.5)
    step: Float[Array, ""] = parameter(default=0.0)

    @classmethod
    def of(cls, symbol: str, height: float = 1.0) -> "WhiteLines":
        """At the energies of the table, on no step. **Raises:** `ValueError`, see
        `edge_energy_eV`."""
        l3, l2 = (edge_energy_eV(symbol, shell) for shell in ("L3", "L2"))
        return cls(height, l3, l2 - l3)

    def __call__(self, energy_eV: Energies) -> Energies:
        lines = self.height, self.onset_eV, self.splitting_eV, self.branching_ratio
        return white_lines(energy_eV, *lines, self.fwhm_eV, self.fwhm_l2_eV, self.step)

    def l3_to_l2(self) -> Float[Array, ""]:
        """The ratio of the areas, which tells the valence of Mn, Fe, Co."""
        return self.branching_ratio / (1.0 - self.branching_ratio)

    def priors(self, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors: L3 within +- 5 eV of where it is, the splitting within 10 %, the branching
        ratio Beta(4, 2), widths 0.3 to 20 eV."""
        s = scales(x, y)
        return {
            "height": s.height(),
            "onset_eV": dist.Normal(float(self.onset_eV), 5.0),
            "splitting_eV": dist.LogNormal(np.log(float(self.splitting_eV)), 0.1),
            "branching_ratio": dist.Beta(4.0, 2.0),
            "fwhm_eV": spread_over(0.3, 20.0),
            "fwhm_l2_eV": spread_over(0.3, 20.0),
            "step": s.height(),
        }
