"""A simulated microscope for `micjax.problems.autofocus`: images of nanoparticles on carbon.

It knows what the model does not: the object, which goes on beyond the borders of the image, the
spherical aberration and the size of the electron source.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from micjax.physics.electrons.phase_diversity import KNOBS, Probes, ProbeSeries

GOLD_A = 4.08  # lattice constant
# projections of the fcc lattice along [100], [110] and [111]: two vectors between columns
CELLS_A = GOLD_A * np.array(
    [
        [[0.5, 0.5], [0.5, -0.5]],
        [[0.5**0.5, 0.0], [0.125**0.5, 0.5]],
        [[6**-0.5, 0.0], [24**-0.5, 8**-0.5]],
    ]
)
GOLD_PER_A = 0.004  # fraction of the electrons that a detector counts, per Å of gold
CARBON = 0.03  # and behind a carbon film of 20 nm
CARBON_ATOMS_PER_A2 = 20.0
ATOM_A = 0.5  # rms radius of an atom, with its thermal motion


def nanoparticles(
    rng: np.random.Generator, shape: tuple[int, int], sampling_A: float
) -> Float[np.ndarray, "ny nx"]:
    """Fraction of the electrons counted at each pixel with a perfect probe: one to three spheres of
    crystalline gold of 8 to 22 Å radius near the middle, on amorphous carbon. Periodic."""
    spectrum = _carbon(rng, shape, sampling_A)
    for _ in range(rng.integers(1, 4)):
        radius_A = rng.uniform(8.0, 22.0)
        centre_A = np.array(shape) * sampling_A / 2 + rng.uniform(-25.0, 25.0, 2)
        spectrum += _sphere(rng, radius_A, centre_A, shape, sampling_A)
    return _thermal(spectrum, shape, sampling_A)


def clusters(
    rng: np.random.Generator, shape: tuple[int, int], sampling_A: float
) -> Float[np.ndarray, "ny nx"]:
    """The same of many spheres of 3 to 6 Å radius all over the field, one for each 200 Å^2."""
    spectrum, edges_A = _carbon(rng, shape, sampling_A), np.array(shape) * sampling_A
    for _ in range(round(np.prod(edges_A) / 200.0)):
        radius_A, centre_A = rng.uniform(3.0, 6.0), edges_A * rng.uniform(0.0, 1.0, 2)
        spectrum += _sphere(rng, radius_A, centre_A, shape, sampling_A)
    return _thermal(spectrum, shape, sampling_A)


def _carbon(rng: np.random.Generator, shape: tuple[int, int], sampling_A: float):
    """Spectrum of the film, whose atoms are points."""
    mean = CARBON_ATOMS_PER_A2 * sampling_A**2
    return np.fft.fft2(CARBON * rng.poisson(mean, shape) / mean)


def _sphere(rng: np.random.Generator, radius_A: float, centre_A, shape, sampling_A: float):
    """Spectrum of a sphere of gold in any direction, whose columns are points."""
    ky, kx = (np.fft.fftfreq(n, sampling_A) for n in shape)
    turn, cell = rng.uniform(0.0, np.pi), CELLS_A[rng.integers(len(CELLS_A))]
    n = np.arange(-30, 31)
    columns = n[:, None, None] * cell[0] + n[None, :, None] * cell[1]
    columns = columns[(columns**2).sum(-1) < radius_A**2]
    thickness_A = 2 * np.sqrt(radius_A**2 - (columns**2).sum(-1))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    columns_A = centre_A + columns @ rotation
    weights = GOLD_PER_A * thickness_A * abs(np.linalg.det(cell)) / sampling_A**2
    down = np.exp(-2j * np.pi * ky[:, None] * columns_A[:, 0])
    return (weights * down) @ np.exp(-2j * np.pi * columns_A[:, 1:] * kx)


def _thermal(spectrum, shape: tuple[int, int], sampling_A: float):
    """The image of a spectrum, its points as large as atoms."""
    ky, kx = (np.fft.fftfreq(n, sampling_A) for n in shape)
    atoms = np.exp(-2 * (np.pi * ATOM_A) ** 2 * (ky[:, None] ** 2 + kx**2))
    return np.maximum(np.fft.ifft2(spectrum * atoms).real, 0.0)


@dataclasses.dataclass(frozen=True)
class Microscope:
    """Images of an object at any setting of the lenses.

    **Arguments:**

    - `probes`: of the size of the object, with all aberrations there are.
    - `object`: fraction of the electrons that is counted; its middle is imaged.
    - `shape`: of the images.
    - `electrons`: per pixel.
    - `source_A`: rms radius of the source.
    """

    probes: Probes
    object: Float[np.ndarray, "n m"]
    shape: tuple[int, int]
    electrons: float = 1e3
    source_A: float = 0.0

    def image(
        self, key: Key[Array, ""], setting_A: Float[np.ndarray, "3"]
    ) -> Float[np.ndarray, "ny nx"]:
        """Counts at a setting."""
        expected = np.asarray(
            _expected(self.probes, self.object, jnp.asarray(setting_A, dtype=float), self.source_A)
        )
        (n, m), (ny, nx) = self.object.shape, self.shape
        middle = expected[(n - ny) // 2 : (n + ny) // 2, (m - nx) // 2 : (m + nx) // 2]
        return np.asarray(jax.random.poisson(key, self.electrons * middle), float)

    def residual_A(self, setting_A: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
        """What is left of the aberrations at a setting; only a simulation knows."""
        return np.array([float(self.probes.aberrations_A[n]) for n in KNOBS]) + setting_A


@jax.jit
def _expected(probes: Probes, image, setting_A, source_A):
    x = ProbeSeries(setting_A[None], jnp.ones(1))
    q2 = sum(
        (jnp.fft.fftfreq(n) ** 2).reshape(s)
        for n, s in zip(image.shape, ((-1, 1), (1, -1)), strict=True)
    )
    source = jnp.exp(-2 * (jnp.pi * source_A / probes.sampling_A) ** 2 * q2)
    spectrum = jnp.fft.fft2(image) * jnp.fft.fft2(probes(x)[0]) * source
    return jnp.maximum(jnp.fft.ifft2(spectrum).real, 0.0)


def microscope(
    seed: int,
    aberrations_A: dict[str, float],
    shape: tuple[int, int] = (128, 128),
    electrons: float = 1e3,
    source_A: float = 0.0,
    sampling_A: float = 0.625,
    energy_keV: float = 200.0,
    semiangle_mrad: float = 10.0,
) -> Microscope:
    """A microscope in front of the `seed`-th object, which is twice the size of the images."""
    large = (2 * shape[0], 2 * shape[1])
    specimen = nanoparticles(np.random.default_rng(seed), large, sampling_A)
    probes = Probes(aberrations_A, sampling_A, energy_keV, semiangle_mrad, large)
    return Microscope(probes, specimen, shape, electrons, source_A)
