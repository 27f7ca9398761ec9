"""Forward models of `micjax.problems.structure`: a crystal that moves, seen by scanning it or by a
series of images.

Thermal motion is a mean over frozen phonons whose displacements are sqrt(u) times fixed normal
numbers, so that patterns are smooth in u. The speckle of few moments would bias u. So the mean wave
of a scan is that behind the mean transmission of all moments, and only what each adds to it, whose
intensity is smooth in the angle, comes from few, smoothed. They come in sets; places next to one
another see different ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from micjax.core.problem import parameter
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.multislice import (
    band_limit,
    frequencies_inv_A,
    propagate,
    transmission,
)
from micjax.physics.electrons.pacbed import mean_transmission
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.stem import GPU_WAVES, placed

CLOSER = 4  # finer pixels for the potential: see micjax.physics.electrons.multislice.transmission


class Scan(NamedTuple):
    """Where the probe stood, and the pixels of the camera."""

    position_A: Float[Array, "ny nx 2"]  # (y, x) in the box of the structure
    y_mrad: Float[Array, "my"]  # of the middle of a row, 0 along the axis
    x_mrad: Float[Array, "mx"]
    efficiency: Float[Array, "my mx"]  # 0 where a pixel is blind


class Series(NamedTuple):
    """The focus of each image, and where its pixels lie."""

    defocus_A: Float[Array, "images"]  # -C10: positive is an underfocus
    y_A: Float[Array, "my"]
    x_A: Float[Array, "mx"]


class Crystal(eqx.Module):
    """Atoms that move column by column."""

    shift_A: Float[Array, "columns 2"] = parameter()  # (x, y), from `position_A`
    occupancy: Float[Array, "chosen"] = parameter()
    u_A2: Float[Array, "elements"] = parameter()  # mean square displacement along an axis
    position_A: Float[Array, "atoms 3"] = parameter()
    box_A: Float[Array, "3"] = parameter()
    normal: Float[Array, "sets moments atoms 2"] = parameter()  # fixed; no moments: damped instead
    numbers: tuple[int, ...] = eqx.field(static=True)
    column: tuple[int, ...] = eqx.field(static=True)  # of each atom
    chosen: tuple[int, ...] = eqx.field(static=True)  # columns whose occupancy is not known
    shape: tuple[int, int] = eqx.field(static=True)  # of the wave
    layers: tuple[tuple[int, ...], ...] = eqx.field(static=True)  # atoms of each slice

    @property
    def sampling_A(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return self.box_A[1] / self.shape[0], self.box_A[0] / self.shape[1]

    @property
    def slices(self) -> int:
        return len(self.layers)

    @property
    def slice_A(self) -> Float[Array, ""]:
        return self.box_A[2] / self.slices

    @property
    def limit(self) -> Float[Array, "ny nx"]:
        return band_limit(self.shape, self.sampling_A)

    def at_rest(self) -> Atoms:
        """The atoms at their mean places, their thermal motion beside them."""
        column = np.asarray(self.column)
        full = jnp.ones(max(self.column) + 1, self.shift_A.dtype)
        occupancy = full.at[np.asarray(self.chosen, int)].set(self.occupancy)
        elements = sorted(set(self.numbers))
        return Atoms(
            self.numbers,
            self.position_A.at[:, :2].add(self.shift_A[column]),
            self.box_A,
            u_A2=self.u_A2[np.searchsorted(elements, self.numbers)],
            occupancy=occupancy[column],
        )

    def transmissions(self, normal, energy_keV) -> Complex[Array, "slices ny nx"]:
        """In the moment in which the atoms have moved by sqrt(u) `normal`; None: damped."""
        atoms = self.at_rest()
        if normal is not None:
            moved = atoms.position_A.at[:, :2].add(jnp.sqrt(atoms.u_A2[:, :2]) * normal)
            atoms = Atoms(atoms.numbers, moved, atoms.box_A, occupancy=atoms.occupancy)
        thickness = jnp.full(self.slices, self.slice_A)
        fine = (CLOSER * self.shape[0], CLOSER * self.shape[1])
        potential = potential_VA(atoms, fine, thickness, slices=self.layers)
        return transmission(potential, energy_keV, self.limit)

    def mean_transmissions(self, energy_keV) -> Complex[Array, "slices ny nx"]:
        """Over all thermal motion: what an elastic wave goes through."""
        return mean_transmission(self.at_rest(), self.layers, self.shape, energy_keV)

    def through(self, waves, transmissions, energy_keV) -> Complex[Array, "... ny nx"]:
        return propagate(
            waves, transmissions, self.slice_A, self.sampling_A, energy_keV, limit=self.limit
        )


class Scanned(eqx.Module):
    """Fraction of the beam in each pixel of a camera, for each place of a probe."""

    crystal: Crystal
    aberrations_A: dict[str, Float[Array, ""]] = eqx.field(
        converter=lambda values: {n: jnp.asarray(v, dtype=float) for n, v in values.items()}
    )
    offset_A: Float[Array, "2"] = parameter()  # of the scan, (y, x)
    semiangle_mrad: Float[Array, ""] = parameter()
    energy_keV: Float[Array, ""] = parameter()
    smooth_mrad: Float[Array, ""] = parameter()  # diffuse scattering has no finer details
    diffuse: Float[Array, ""] = parameter(default=1.0)  # of it on the camera, 1 in theory

    @eqx.filter_jit
    def __call__(self, x: Scan) -> Float[Array, "ny nx my mx"]:
        crystal, energy_keV = self.crystal, self.energy_keV
        wavelength_A = optics.wavelength_A(energy_keV)
        angles = optics.angles_mrad(crystal.shape, jnp.stack(crystal.sampling_A), wavelength_A)
        probe = self.probe()
        rows = shares(x.y_mrad, angles[0].ravel())
        columns = shares(x.x_mrad, angles[1].ravel())

        def on_camera(pattern):
            return x.efficiency * (rows @ pattern @ columns.T)

        def after(wave, transmissions):
            return crystal.through(wave, transmissions, energy_keV)

        def each(seen, places):
            # on a CPU one wave at a time stays in the cache
            batch = 1 if jax.default_backend() == "cpu" else max(1, GPU_WAVES // probe.size)
            at_place = jax.checkpoint(lambda r: seen(placed(probe, r[None], crystal.sampling_A)[0]))
            return jax.lax.map(at_place, places, batch_size=batch)

        *grid, _ = x.position_A.shape
        places = (x.position_A + self.offset_A).reshape(-1, 2)
        if not crystal.normal.size:
            still = crystal.transmissions(None, energy_keV)
            patterns = each(lambda wave: on_camera(diffraction(after(wave, still))), places)
            return patterns.reshape(*grid, *x.efficiency.shape)
        mean = crystal.mean_transmissions(energy_keV)
        smooth = self.smooth(angles)

        def of_set(a):
            normal, places = a
            moments = jax.lax.map(lambda n: crystal.transmissions(n, energy_keV), normal)

            def seen(wave):
                elastic = after(wave, mean)
                added = jax.lax.map(lambda t: diffraction(after(wave, t) - elastic), moments)
                diffuse = self.diffuse * smooth(jnp.mean(added, 0))
                return on_camera(diffraction(elastic) + diffuse)

            return each(seen, places)

        which = dealt(len(places), len(crystal.normal))
        patterns = jax.lax.map(of_set, (crystal.normal, places[which]))
        first = np.unique(which, return_index=True)[1]
        patterns = patterns.reshape(-1, *x.efficiency.shape)[first]
        return patterns.reshape(*grid, *x.efficiency.shape)

    def probe(self) -> Complex[Array, "ny nx"]:
        crystal, wavelength_A = self.crystal, optics.wavelength_A(self.energy_keV)
        angles = optics.angles_mrad(crystal.shape, jnp.stack(crystal.sampling_A), wavelength_A)
        return optics.probe(angles, self.semiangle_mrad, self.aberrations_A, wavelength_A)

    @eqx.filter_jit
    def apart(self) -> Float[Array, ""]:
        """The part of the probe within half of the box around it. The rest meets that of the next
        box, which no microscope has."""
        near_y, near_x = (np.abs(np.fft.fftfreq(n)) < 0.25 for n in self.crystal.shape)
        intensity = jnp.abs(self.probe()) ** 2
        return jnp.sum(intensity[near_y][:, near_x]) / jnp.sum(intensity)

    def smooth(self, angles):
        """A mean over a Gaussian of angles, within the band limit."""
        limit = self.crystal.limit
        along_y, along_x = (
            jnp.exp(-0.5 * ((a.ravel()[:, None] - a.ravel()) / self.smooth_mrad) ** 2)
            for a in angles
        )
        weight = jnp.maximum(along_y @ limit @ along_x, 1e-6)
        return lambda diffuse: limit * (along_y @ (limit * diffuse) @ along_x) / weight


class Imaged(eqx.Module):
    """Intensity of each image of a through-focal series, 1 without a specimen."""

    crystal: Crystal
    aberrations_A: dict[str, Float[Array, ""]] = eqx.field(
        converter=lambda values: {n: jnp.asarray(v, dtype=float) for n, v in values.items()}
    )
    offset_A: Float[Array, "images 2"] = parameter()  # of each image, (y, x)
    semiangle_mrad: Float[Array, ""] = parameter()  # of the objective aperture
    focal_spread_A: Float[Array, ""] = parameter()
    angular_spread_mrad: Float[Array, ""] = parameter()
    energy_keV: Float[Array, ""] = parameter()

    @eqx.filter_jit
    def __call__(self, x: Series) -> Float[Array, "images my mx"]:
        crystal, energy_keV = self.crystal, self.energy_keV
        shape, sampling_A = crystal.shape, crystal.sampling_A
        wavelength_A = optics.wavelength_A(energy_keV)
        angles = optics.angles_mrad(shape, jnp.stack(sampling_A), wavelength_A)
        ky, kx = (k.ravel() for k in frequencies_inv_A(shape, sampling_A))
        opened = optics.sharp_aperture(angles, self.semiangle_mrad)
        opened = opened * optics.focal_envelope(angles, self.focal_spread_A, wavelength_A)

        def lens(defocus_A):
            total_A = {**self.aberrations_A, "C10": self.aberrations_A["C10"] - defocus_A}
            spread = self.angular_spread_mrad
            envelope = optics.angular_envelope(angles, spread, total_A, wavelength_A)
            return opened * envelope * jnp.exp(-1j * optics.chi(angles, total_A, wavelength_A))

        lenses = jax.lax.map(lens, x.defocus_A)

        def moment(normal):
            start = jnp.ones(shape, jnp.result_type(crystal.position_A.dtype, jnp.complex64))
            after = crystal.through(start, crystal.transmissions(normal, energy_keV), energy_keV)
            waves = jnp.fft.ifft2(jnp.fft.fft2(after) * lenses)
            return waves.real**2 + waves.imag**2

        sets, moments, *rest = crystal.normal.shape
        normal = crystal.normal.reshape(sets * moments, *rest)
        if moments:
            images = jnp.mean(jax.lax.map(jax.checkpoint(moment), normal), 0)
        else:
            images = moment(None)

        def on_camera(image, offset_A):
            rows = pixels(x.y_A + offset_A[0], x.y_A, ky)
            columns = pixels(x.x_A + offset_A[1], x.x_A, kx)
            return (rows @ jnp.fft.fft2(image) @ columns.T).real / image.size

        return jax.vmap(on_camera)(images, self.offset_A)


def first_atoms(column: Sequence[int]) -> np.ndarray:
    """An atom of each column."""
    return np.unique(column, return_index=True)[1]


def scan_of(box_A, ny: int, nx: int, reach_mrad: float, pixel_mrad: float) -> Scan:
    """Places that fill a box, and a camera of square pixels up to an angle."""
    y, x = (edge / n * np.arange(n) for edge, n in zip(box_A[1::-1], (ny, nx), strict=True))
    half = int(np.floor(reach_mrad / pixel_mrad - 0.5))
    along = jnp.asarray(pixel_mrad * np.arange(-half, half + 1), float)
    places = jnp.asarray(np.stack(np.meshgrid(y, x, indexing="ij"), -1), float)
    return Scan(places, along, along, jnp.ones((len(along), len(along))))


def shares(middle: Float[Array, "m"], wave: Float[Array, "n"]) -> Float[Array, "m n"]:
    """How much of each pixel of a wave's spectrum falls onto each pixel of a camera, along an
    axis: both are evenly spaced, and pixels have no gaps."""
    width, finer = jnp.abs(middle[1] - middle[0]), wave[1] - wave[0]
    apart = jnp.abs(middle[:, None] - wave)
    return jnp.clip(0.5 * (width + finer) - apart, 0.0, jnp.minimum(width, finer)) / finer


def pixels(at_A, spaced_A, k_inv_A) -> Complex[Array, "m n"]:
    """What makes the pixels of a camera from the spectrum of an image, along an axis: each is a
    mean over its width."""
    width = jnp.abs(spaced_A[1] - spaced_A[0])
    return jnp.exp(2j * jnp.pi * at_A[:, None] * k_inv_A) * jnp.sinc(width * k_inv_A)


def dealt(places: int, sets: int) -> np.ndarray:
    """Which places see which set of moments, `[sets, places / sets]`: mixed, and filled up."""
    order = np.random.default_rng(0).permutation(places)
    return np.resize(order, (-(-places // sets), sets)).T


def normal_numbers(sets: int, moments: int, column: Sequence[int]) -> np.ndarray:
    """`[sets, moments, atoms, 2]`, for a multiple of 12 moments: in every set each coordinate takes
    the three nodes of Gauss and Hermite, 0 and +- sqrt(3), as often as they weigh, so that the
    means of an atom over a normal law are exact up to the fifth power. It moves in one third of the
    moments. Three atoms of a column, which scatter together, take three orders of signs and are not
    correlated, even in the third part of the sets (for a multiple of 9) in which they move at once.
    """
    rng, third = np.random.default_rng(0), moments // 3
    numbers = np.zeros((sets, moments, len(column), 2))
    signs = np.tile([[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], third // 4)
    for c in sorted(set(column)):
        atoms = np.flatnonzero(np.asarray(column) == c)
        for index in range(sets):
            for first in range(0, len(atoms), 3):
                thirds = rng.permutation(moments).reshape(3, third)
                for k, atom in enumerate(atoms[first : first + 3]):
                    for along in range(2):
                        moved = np.sqrt(3.0) * rng.choice([-1, 1]) * signs[(k + along) % 3]
                        when = thirds[(k * index + along * (index // 3)) % 3]
                        numbers[index, when, atom, along] = moved
    return numbers
