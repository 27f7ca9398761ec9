"""The forward model of `micjax.problems.cbed`: a crystal in a convergent beam."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from micjax.core.problem import parameter
from micjax.physics.electrons import optics
from micjax.physics.electrons.pacbed import (
    Camera,
    Directions,
    Rocking,
    between,
    diffuse,
    mean_transmission,
    rocking,
    seen,
)
from micjax.physics.electrons.potentials.layers import Atoms

Pixels = Float[Array, "my mx"]


class Convergent(eqx.Module):
    """Fraction of the beam in each pixel of a camera."""

    thickness_A: Float[Array, ""] = parameter()
    tilt_mrad: Float[Array, "2"] = parameter()  # of the beam against the crystal, (y, x)
    u_A2: Float[Array, ""] = parameter()  # mean square displacement along an axis
    strain: Float[Array, ""] = parameter()  # of the cell, along all axes
    diffuse_share: Float[Array, ""] = parameter()  # part of the diffuse electrons on the camera
    centre_mrad: Float[Array, "2"] = parameter()  # of the aperture on the camera, (y, x)
    semiangle_mrad: Float[Array, ""] = parameter()
    energy_keV: Float[Array, ""] = parameter()
    position_A: Float[Array, "atoms 3"] = parameter()
    occupancy: Float[Array, "atoms"] = parameter()
    box_A: Float[Array, "3"] = parameter()
    numbers: tuple[int, ...] = eqx.field(static=True)
    layers: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    shape: tuple[int, int] = eqx.field(static=True)
    cells: int = eqx.field(static=True)
    directions: Directions = eqx.field(static=True)

    def __call__(self, x: Camera) -> Pixels:
        every = self.every_thickness()
        cells = self.thickness_A / self.atoms().box_A[2]
        return self.on(x)(between(every.intensity, cells), between(every.total, cells))

    @eqx.filter_jit
    def lost(self) -> Float[Array, ""]:
        """The fraction of the electrons that is scattered beyond the grid: what twice as many
        pixels along each edge keep of a wave along the axis."""
        alone = dataclasses.replace(self, directions=self.directions._replace(beams=(0, 0)))
        finer = dataclasses.replace(alone, shape=tuple(2 * n for n in self.shape))
        cells = self.thickness_A / self.atoms().box_A[2]
        kept, more = (between(each.every_thickness().total, cells) for each in (alone, finer))
        return jnp.abs(more - kept)

    def every_thickness(self) -> Rocking:
        atoms = self.atoms()
        return rocking(
            mean_transmission(atoms, self.layers, self.shape, self.energy_keV),
            atoms.box_A,
            self.cells,
            self.directions,
            self.semiangle_mrad,
            self.energy_keV,
            self.tilt_mrad - self.centre_mrad,
        )

    def on(self, x: Camera):
        """What the camera sees of rocking curves and their sum: with the diffuse electrons, which
        the elastic ones lack."""
        atoms = self.atoms()
        lattice_mrad = 1e3 * optics.wavelength_A(self.energy_keV) / atoms.box_A[1::-1]
        background = self.diffuse_share * diffuse(atoms, x, self.semiangle_mrad, self.energy_keV)

        def pixels(intensity, total):
            elastic = seen(
                intensity,
                x,
                self.directions,
                lattice_mrad,
                self.semiangle_mrad,
                self.centre_mrad,
            )
            return x.efficiency * (elastic + (1.0 - total) * background)

        return pixels

    def atoms(self) -> Atoms:
        scale = 1.0 + self.strain
        return Atoms(
            self.numbers,
            scale * self.position_A,
            scale * self.box_A,
            u_A2=self.u_A2,
            occupancy=self.occupancy,
        )
