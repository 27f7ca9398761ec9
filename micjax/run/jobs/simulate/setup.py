"""What all kinds of simulation have in common: the specimen, its grid, its potential.

What is decided here, the pixels, the slices and what lies in them, is decided in double precision:
a simulation in single precision has the same.
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.spatial import cKDTree

from micjax.core import devices
from micjax.core.names import unknown_name
from micjax.io.readers.orthogonal import orthogonal
from micjax.io.readers.structures import read_structure
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import annulus
from micjax.physics.electrons.grids import quick_size
from micjax.physics.electrons.multislice import band_limit, highest_angle_mrad, propagator
from micjax.physics.electrons.phonons import displaced
from micjax.physics.electrons.potentials import finite
from micjax.physics.electrons.potentials.exact import SAME_A2
from micjax.physics.electrons.potentials.layers import Atoms, Layers, atoms_of, layers, potential_VA
from micjax.physics.electrons.scattering import table
from micjax.run.plans.simulate import SimulatePlan

log = logging.getLogger("micjax")

CLOSEST_A = 0.5  # atoms nearer to each other are a mistake in the file, or share a site
ATOM_BYTES = 200  # at least, of an atom: its place, its motion, and those of the tree of neighbours
PIXEL_BYTES = 32  # at least, of a pixel of the potential: complex, and a Fourier transform of it
MANY = 2000  # atoms of an element in a slice, from which on a fast Fourier transform is quicker


class Setup(NamedTuple):
    """What all kinds have in common."""

    atoms: Atoms
    cell_A: np.ndarray  # of what was tiled, (x, y, z)
    shape: tuple[int, int]
    sampling_A: tuple[float, float]
    thickness_A: np.ndarray
    angles: optics.Angles
    limit: jax.Array
    masks: np.ndarray  # of the detectors of stem
    highest_mrad: float
    potential: Callable[[jax.Array], jax.Array]  # of the atoms in one moment, on finer pixels
    moments: jax.Array  # keys: of frozen configurations, or one of damped atoms
    mesh: Mesh | None  # of several devices


def prepare(plan: SimulatePlan) -> Setup:
    """The specimen and its grid.

    **Raises:** `ValueError` for a structure or a setting that makes no sense.
    """
    table(plan.table)
    optics.cartesian(plan.aberrations)
    with jax.enable_x64(True):
        cell = _cell(plan)
        _check_memory(plan, cell)
        atoms = cell.repeated(*plan.tile)
        cell_A, box_A = (np.asarray(a.box_A) for a in (cell, atoms))
        _sensible(plan, atoms, cell_A)
        shape = tuple(quick_size(edge / plan.sampling_A, multiple_of=2) for edge in box_A[1::-1])
        sampling = (float(box_A[1] / shape[0]), float(box_A[0] / shape[1]))
        slices = int(np.ceil(cell_A[2] / plan.slice_A - 1e-9))
        thickness = np.full(plan.tile[2] * slices, cell_A[2] / slices)
        wavelength = optics.wavelength_A(plan.energy_keV)
        angles = optics.angles_mrad(shape, np.asarray(sampling), wavelength)
        highest = highest_angle_mrad(sampling, plan.energy_keV)
        _within_reach(plan, sampling, highest)
        masks = _masks(plan, angles)
        limit = np.asarray(band_limit(shape, sampling))
        options = _options(plan, atoms, thickness)
        position_A, u_A2, occupancy = map(
            np.asarray, (atoms.position_A, atoms.u_A2, atoms.occupancy)
        )
        angles = tuple(map(np.asarray, angles))
    atoms = Atoms(atoms.numbers, position_A, box_A, u_A2=u_A2, occupancy=occupancy)
    potential = _potential(plan, atoms, tuple(plan.finer * n for n in shape), thickness, options)
    moments = jax.random.split(jax.random.key(plan.seed), max(1, plan.phonons))
    tilted = functools.partial(propagator, shape, sampling, thickness[0], plan.energy_keV)
    for refuses in (lambda: potential(moments[0]), lambda: tilted(plan.tilt_mrad)):
        jax.eval_shape(refuses)  # is told now
    return Setup(
        atoms,
        cell_A,
        shape,
        sampling,
        thickness,
        tuple(jnp.asarray(a, float) for a in angles),
        jnp.asarray(limit, float),
        masks,
        highest,
        potential,
        moments,
        devices.row() if jax.local_device_count() > 1 else None,
    )


def scan_size_A(plan: SimulatePlan, cell_A: np.ndarray) -> tuple[float, float]:
    """(y, x), one cell if nothing else is said."""
    return plan.scan_size_A or (float(cell_A[1]), float(cell_A[0]))


def _cell(plan: SimulatePlan) -> Atoms:
    """**Raises:** what `read_structure` raises; `ValueError` for an element that is not there."""
    structure = read_structure(plan.structure)
    if plan.orthogonal:
        structure = orthogonal(structure)
    if not isinstance(plan.u_A2, Mapping):
        return atoms_of(structure, plan.u_A2)
    symbols = structure.get_chemical_symbols()
    for element in plan.u_A2:
        if element not in symbols:
            raise ValueError(f"u_A2: {unknown_name('element', element, sorted(set(symbols)))}")
    symbols_u_A2 = zip(symbols, structure.arrays["u_A2"], strict=True)
    return atoms_of(structure, np.asarray([plan.u_A2.get(s, float(u)) for s, u in symbols_u_A2]))


def _check_memory(plan: SimulatePlan, cell: Atoms) -> None:
    """**Raises:** `ValueError` for a specimen or a grid that takes more memory than there is."""
    box_A = np.asarray(cell.box_A) * plan.tile
    count = len(cell.numbers) * math.prod(plan.tile)
    pixels = math.prod(plan.finer * np.ceil(box_A[:2] / plan.sampling_A))
    try:
        devices.check_memory(f"tile={list(plan.tile)}, {count} atoms,", ATOM_BYTES * count)
        grid = f"sampling_A={plan.sampling_A:g}, finer={plan.finer}, {pixels:.3g} pixels,"
        devices.check_memory(grid, PIXEL_BYTES * pixels)
    except MemoryError as error:
        raise ValueError(str(error)) from error


def _sensible(plan: SimulatePlan, atoms: Atoms, cell_A: np.ndarray) -> None:
    """**Raises:** `ValueError` for atoms on top of each other, and for settings that make no sense
    with this specimen."""
    _apart(atoms)
    if plan.phonons and not np.any(np.asarray(atoms.u_A2)):
        raise ValueError(
            f"phonons={plan.phonons} of atoms that do not move: give u_A2, a mean square "
            "displacement (0.005 Å^2 or so)"
        )
    box_A, size_A = np.asarray(atoms.box_A)[1::-1], np.asarray(scan_size_A(plan, cell_A))
    if np.any(size_A > (1.0 + 1e-6) * box_A):
        ny, nx = np.ceil(size_A / cell_A[1::-1] - 1e-6).astype(int)
        raise ValueError(
            f"scan_size_A of {size_A[0]:g} x {size_A[1]:g} Å (y, x) over a specimen of "
            f"{box_A[0]:g} x {box_A[1]:g} Å repeats itself: "
            f"tile=[{nx},{ny},{plan.tile[2]}] would hold it"
        )
    cells = size_A / cell_A[1::-1]
    turned = plan.scan_rotation_deg != 0.0
    if plan.source_fwhm_A and (turned or not np.allclose(cells, np.round(cells), atol=1e-6)):
        raise ValueError(
            f"source_fwhm_A needs a scan that repeats itself; this one goes over {cells[0]:.4g} x "
            f"{cells[1]:.4g} cells{', turned' if turned else ''}: whole numbers are allowed"
        )


def _apart(atoms: Atoms) -> None:
    box = np.asarray(atoms.box_A, float) * [1.0, 1.0, 0.0]  # of no period along the beam
    place = np.array(atoms.position_A, float)
    place[:, :2] = np.mod(place[:, :2], box[:2]) % box[:2]
    place[:, 2] -= place[:, 2].min()
    pairs = cKDTree(place, boxsize=box).query_pairs(CLOSEST_A, output_type="ndarray")
    occupancy = np.asarray(atoms.occupancy, float)
    total = occupancy.copy()  # of each atom and those around it
    np.add.at(total, pairs.ravel(), occupancy[pairs[:, ::-1].ravel()])
    for i, j in pairs[np.any(total[pairs] > 1.01, axis=1)][:1]:
        raise ValueError(
            f"atoms {i} and {j} are less than {CLOSEST_A} Å apart; one is superfluous (occupancies "
            "of what shares a site add up to 1 at most)"
        )
    if len(pairs):
        log.info(
            "%d pairs of atoms share a site: their mean by occupancy, which move independently",
            len(pairs),
        )


def _within_reach(plan: SimulatePlan, sampling: tuple[float, float], highest: float) -> None:
    wanted = {"semiangle_mrad": plan.semiangle_mrad}
    if plan.what == "stem":
        wanted |= {f"the detector {n}": outer for n, (_, outer) in plan.detectors.items()}
    for name, angle in wanted.items():
        if angle > highest:
            finer = plan.sampling_A * highest / angle
            raise ValueError(
                f"{name} goes to {angle:g} mrad; a sampling of {max(sampling):.4g} Å scatters up "
                f"to {highest:.4g} mrad: sampling_A={0.99 * finer:.3g} would do"
            )


def _masks(plan: SimulatePlan, angles: optics.Angles) -> np.ndarray:
    """**Raises:** `ValueError` for a detector that no pixel lies on."""
    masks = [np.asarray(annulus(angles, *ends)) for ends in plan.detectors.values()]
    pixel = max(float(a.ravel()[1]) for a in angles)
    for (name, ends), mask in zip(plan.detectors.items(), masks, strict=True):
        if plan.what == "stem" and not mask.any():
            raise ValueError(
                f"the detector {name} from {ends[0]:g} to {ends[1]:g} mrad lies between the pixels "
                f"of {pixel:.4g} mrad: more tiles make them smaller"
            )
    return np.stack(masks)


def _options(plan: SimulatePlan, atoms: Atoms, thickness_A) -> dict[str, Any]:
    """Of `potential_VA`: the projection, and what lies in each slice."""
    options = {"table": plan.table, "projection": plan.projection or "exact"}
    if plan.projection == "finite":
        return options | {"rooms": finite.rooms(atoms, thickness_A)}
    slices = layers(atoms, thickness_A)
    if plan.projection is None and _most(atoms, slices) >= MANY and _alike(plan, atoms):
        options["projection"] = "gridded"
    return options | {"slices": slices}


def _most(atoms: Atoms, slices: Layers) -> int:
    """Atoms of one element in one slice."""
    counts = (Counter(atoms.numbers[i] for i in members) for members in slices)
    return max(max(c.values(), default=0) for c in counts)


def _alike(plan: SimulatePlan, atoms: Atoms) -> bool:
    """Whether all atoms of an element have one damping, as a gridded projection wants it."""
    numbers, u = np.asarray(atoms.numbers), np.asarray(atoms.u_A2)
    spread = max(np.ptp(u[numbers == z], axis=0).max() for z in atoms.elements)
    return plan.phonons > 0 or bool(spread <= SAME_A2)


def _potential(plan: SimulatePlan, atoms: Atoms, shape, thickness_A, options: dict[str, Any]):
    """The potential of a moment, which a key stands for."""

    def potential(key):
        now = displaced(key, atoms) if plan.phonons else atoms
        return potential_VA(now, shape, thickness_A, **options)

    return potential
