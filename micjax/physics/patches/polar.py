"""Local spectra in polar coordinates: a rotated crystal is a spectrum shifted along the angle.

The power at k and at -k is the same, so angles of half a turn are enough and the shift is periodic.
An amplitude is what abundances add up in: where the reflections of two grains lie apart, |F| of a
patch on their border is a F_1 + (1 - a) F_2.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.physics.patches.local_spectra import LocalSpectra, Spectra


class PolarGrid(NamedTuple):
    """Where polar spectra are sampled, and from which of the frequencies of a `LocalSpectra`."""

    radius_perA: Float[np.ndarray, "r"]
    angle_rad: Float[np.ndarray, "t"]  # of k, from x towards y: -pi / 2 up to pi / 2
    of: tuple[np.ndarray, ...]  # each (r, t): places in the flattened spectrum
    share: tuple[np.ndarray, ...]  # weights of bilinear interpolation


class Polar(eqx.Module):
    """`Spectra` -> amplitudes (ny, nx, r, t), of unit weight for each area of the plane of k.

    The power of noise, `floor` times its mean, is taken off first.

    **Arguments:**

    - `local`: whose spectra they are.
    - `k_min_perA`: the lowest radius; what is slower is thickness, and leaks out of the mean.
    - `radii`, `angles`: how many of them.
    """

    local: LocalSpectra
    k_min_perA: float = eqx.field(static=True)
    radii: int = eqx.field(static=True, default=32)
    angles: int = eqx.field(static=True, default=90)
    floor: float = eqx.field(static=True, default=1.5)

    def __check_init__(self):
        highest = self.local.frequencies_perA[1][-1]
        if not 0.0 <= self.k_min_perA < highest:
            raise ValueError(
                f"k_min_perA = {self.k_min_perA:g} is not from 0 up to the highest frequency of "
                f"the spectra, {highest:.3g}"
            )
        if self.radii < 2 or self.angles < 4:
            raise ValueError(f"2 radii and 4 angles at least, here {self.radii} and {self.angles}")

    @property
    def grid(self) -> PolarGrid:
        ky, kx = self.local.frequencies_perA
        radius = np.linspace(self.k_min_perA, kx[-1], self.radii)
        angle = np.pi * (np.arange(self.angles) / self.angles - 0.5)
        down = radius[:, None] * np.sin(angle) / self.local.spacing_perA + len(kx) - 1
        across = radius[:, None] * np.cos(angle) / self.local.spacing_perA
        # the last frequency is the right edge of the last cell
        y, x = (
            np.clip(np.floor(p + 1e-9).astype(int), 0, n - 2)
            for p, n in ((down, len(ky)), (across, len(kx)))
        )
        fy, fx = down - y, across - x
        corners = [(i, j) for i in (0, 1) for j in (0, 1)]
        return PolarGrid(
            radius,
            angle,
            tuple((y + i) * len(kx) + x + j for i, j in corners),
            tuple((fy if i else 1 - fy) * (fx if j else 1 - fx) for i, j in corners),
        )

    def __call__(
        self, spectra: Spectra, variance: Float[Array, "ny nx"] | float = 0.0
    ) -> Float[Array, "ny nx r t"]:
        """`variance`: of the noise of a pixel, in squared units of the image."""
        grid = self.grid
        power = spectra.power.reshape(*spectra.noise.shape, -1)
        sampled = sum(
            power[..., of] * share.astype(power.dtype)
            for of, share in zip(grid.of, grid.share, strict=True)
        )
        area = self.area.astype(power.dtype)
        return area * amplitude(jnp.maximum(sampled - self._off(variance * spectra.noise), 0.0))

    @property
    def area(self) -> Float[np.ndarray, "r 1"]:
        """What amplitudes are multiplied with: the root of the area that a radius stands for."""
        radius = self.grid.radius_perA
        return np.sqrt(radius / radius.mean())[:, None]

    def above(self, rings: Float[Array, "*n r t"], noise) -> Float[Array, "*n r t"]:
        """Amplitudes from which no noise was taken off, without it.

        `noise`: the mean power of the noise, of each patch or of all.
        """
        return _without(rings, self.area.astype(rings.dtype), self.floor, noise)

    def _off(self, noise):
        return self.floor * jnp.asarray(noise)[..., None, None]


@jax.jit
def _without(rings, area, floor, noise):
    off = floor * jnp.asarray(noise)[..., None, None]
    return area * amplitude(jnp.maximum((rings / area) ** 2 - off, 0.0))


def amplitude(power: Float[Array, "..."]) -> Float[Array, "..."]:
    """sqrt(power), with a derivative of 0 where there is none."""
    there = power > 0.0
    return jnp.where(there, jnp.sqrt(jnp.where(there, power, 1.0)), 0.0)


def radial(polar: Float[Array, "*n r t"]) -> Float[Array, "*n r"]:
    """The mean over all angles: the same however a crystal is turned."""
    return jnp.mean(polar, axis=-1)


def harmonics(polar: Float[Array, "*n r t"], max_order: int) -> Float[Array, "*n r m"]:
    """|sum_t polar exp(-2 i m t)| / t, m = 0 .. `max_order`: two-, four-, six-fold parts of rings.

    They stay the same as a crystal is turned. What they lose, how the rings are turned against each
    other, `equivariant` keeps.

    **Raises:** `ValueError` for more of them than the angles resolve.
    """
    angles = polar.shape[-1]
    if not 0 <= max_order <= angles // 2:
        raise ValueError(f"harmonics up to {angles // 2} for {angles} angles, not {max_order}")
    return jnp.abs(jnp.fft.rfft(polar, axis=-1)[..., : max_order + 1]) / angles
