"""Atom columns, occupancies and thermal motion from 4D-STEM or a through-focal series.

    counts = Poisson(dose intensity(positions, occupancies, u))

The intensity is that of multislice, averaged over frozen phonons. Atoms of one element at the same
place (x, y) are a column, which moves as one: a projection does not tell their heights, which are
known. A fit refines a
structure that is right to within a few tenths of an Å.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from micjax.core.problem import InverseProblem, drawn_data
from micjax.core.ranges import not_negative, positive
from micjax.physics.electrons import optics
from micjax.physics.electrons.grids import coarsest_A, shape_over
from micjax.physics.electrons.multislice import CUTOFF, highest_angle_mrad
from micjax.physics.electrons.potentials.layers import Atoms, layers
from micjax.physics.electrons.scattering import scattering_factors_A
from micjax.physics.noise import Poisson
from micjax.problems.shared.stress import stress as stress
from micjax.problems.structure.data import load as load
from micjax.problems.structure.model import (
    Crystal,
    Imaged,
    Scanned,
    Series,
    first_atoms,
    normal_numbers,
    scan_of,
)
from micjax.problems.structure.show import compare as compare
from micjax.problems.structure.show import figures as figures
from micjax.problems.structure.show import peak_shifts as peak_shifts
from micjax.problems.structure.stages import conclude as conclude
from micjax.problems.structure.stages import stages as stages

# molybdenum disulphide in a cell with right angles, (x, y, z) in Å
MOS2 = (
    [42, 16, 16, 42, 16, 16],
    [[0, 0, 3.25], [0, 1.824, 1.69], [0, 1.824, 4.81]]
    + [[1.58, 2.737, 3.25], [1.58, 4.561, 1.69], [1.58, 4.561, 4.81]],
    [3.16, 5.473, 6.4],
)
BEYOND, FINE_A = 1.35, 0.12


def problem(
    kind: Literal["stem", "hrtem"] = "stem",
    numbers: list | None = None,
    position_A: list | None = None,
    box_A: list | None = None,
    tile: list = [2, 1, 1],  # noqa: B006
    vacant: list = [16],  # noqa: B006
    u_A2: float | list = 0.006,
    shift_sd_A: float = 0.1,
    most: float = 1.2,
    dose: float = 2e4,
    energy_keV: float = 80.0,
    semiangle_mrad: float = 25.0,
    reach_mrad: float = 70.0,
    aberrations_A: dict | None = None,
    defocus_sd_A: float = 0.0,
    offset_sd_A: float = 0.0,
    images: int = 3,
    focal_spread_A: float = 30.0,
    angular_spread_mrad: float = 0.1,
    sampling_A: float | None = None,
    slice_A: float = 2.0,
    moments: int = 12,
    sets: int = 9,
    smooth_mrad: float = 8.0,
    diffuse_sd: float = 0.05,
    column_A: float = 0.1,
) -> InverseProblem:
    """A structure in a box with right angles, the beam along z.

    **Arguments:**

    - `kind`: `stem` (a camera behind a scanned probe) or `hrtem` (a series of images).
    - `numbers`: atomic numbers; with `position_A` and `box_A`, molybdenum disulphide if not given.
    - `position_A`: [[x, y, z], ...], where the refinement starts.
    - `box_A`: edges along x, y, z.
    - `tile`: boxes along x, y, z. Those along z make longer columns, which move as one.
    - `vacant`: atomic numbers of the elements whose occupancy is unknown, column by column.
    - `u_A2`: mean square displacement along an axis to within a factor of 1.35: one number, or one
        for each element in the order of their atomic numbers.
    - `shift_sd_A`: how far a column may be off along x and along y.
    - `most`: the largest occupancy; the smallest is 0.
    - `dose`: electrons for each place of the probe, or for each pixel of an image; within 20 %.
    - `energy_keV`: of the electrons.
    - `semiangle_mrad`: of convergence, or of the objective aperture.
    - `reach_mrad`: stem: the camera sees no further.
    - `aberrations_A`: {"C10": ..., "C30": ...}, Cartesian; known, but for C10.
    - `defocus_sd_A`: how far C10 may be off; 0 if it is known.
    - `offset_sd_A`: how far the scan, or each image, may be off along y and x; 0 if it is known.
    - `images`: hrtem: how many.
    - `focal_spread_A`: hrtem: 1/e half-width of the foci.
    - `angular_spread_mrad`: hrtem: 1/e half-width of the directions of illumination.
    - `sampling_A`: pixels of the wave, at most; what the angles need if not given.
    - `slice_A`: thickness of a slice, at most. An atom acts where its slice begins.
    - `moments`: frozen phonons in each set, a multiple of 12, all of which a place sees; 0 damps
        the potential instead, which has no diffuse scattering.
    - `sets`: of frozen phonons.
    - `smooth_mrad`: stem: diffuse scattering is a mean over a Gaussian of this standard deviation.
    - `diffuse_sd`: stem: how far diffuse scattering may be off, as a fraction; 0 if it is known.
        Few per cent of it are the pixels of the wave, the camera, or much of u.
    - `column_A`: atoms of one element no further apart along x and y are one column.

    **Raises:** `ValueError` for numbers that are not positive or below 0, an unknown element, a
    structure of which a part is missing, pixels that are too coarse for the angles.
    """
    positive(
        u_A2=u_A2,
        shift_sd_A=shift_sd_A,
        most=most,
        dose=dose,
        energy_keV=energy_keV,
        semiangle_mrad=semiangle_mrad,
        reach_mrad=reach_mrad,
        slice_A=slice_A,
        smooth_mrad=smooth_mrad,
        column_A=column_A,
        images=images,
    )
    not_negative(
        defocus_sd_A=defocus_sd_A,
        offset_sd_A=offset_sd_A,
        diffuse_sd=diffuse_sd,
        focal_spread_A=focal_spread_A,
        angular_spread_mrad=angular_spread_mrad,
    )
    if moments % 12 or moments < 0 or sets < 1:
        raise ValueError(f"{sets} sets of {moments} moments: a multiple of 12, 1 set at least")
    atoms = _atoms(numbers, position_A, box_A, tile)
    box = np.asarray(atoms.box_A, float)
    column = _columns(atoms, column_A)
    chosen = tuple(c for c, i in enumerate(first_atoms(column)) if atoms.numbers[i] in vacant)
    if strange := sorted(set(vacant) - set(atoms.numbers)):
        raise ValueError(f"vacant = {strange}: there are {sorted(set(atoms.numbers))}")
    u = np.broadcast_to(np.asarray(u_A2, float), (len(atoms.elements),))
    slices = int(np.ceil(box[2] / slice_A - 1e-9))
    thickness = np.full(slices, box[2] / slices)
    at_rest = Atoms(atoms.numbers, atoms.position_A, box)
    crystal = Crystal(
        np.zeros((max(column) + 1, 2)),
        np.ones(len(chosen)),
        u,
        atoms.position_A,
        box,
        normal_numbers(sets, moments, column),
        atoms.numbers,
        column,
        chosen,
        _shape(kind, box, sampling_A, energy_keV, semiangle_mrad, reach_mrad),
        layers(at_rest, thickness),
    )
    aberrations_A = {"C10": 0.0, **(aberrations_A or {})}
    if strange := sorted(set(aberrations_A) - set(optics.CARTESIAN)):
        raise ValueError(f"aberrations_A has {strange}; there are {', '.join(optics.CARTESIAN)}")
    if kind == "stem":
        forward = Scanned(
            crystal, aberrations_A, np.zeros(2), semiangle_mrad, energy_keV, smooth_mrad
        )
    else:
        forward = Imaged(
            crystal,
            aberrations_A,
            np.zeros((images, 2)),
            semiangle_mrad,
            focal_spread_A,
            angular_spread_mrad,
            energy_keV,
        )
    priors = {
        "forward.crystal.shift_A": dist.Normal(0.0, shift_sd_A),
        "forward.crystal.u_A2": dist.LogNormal(np.log(u), 0.3),
        "noise.dose": dist.LogNormal(np.log(dose), 0.2),
    }
    if chosen:
        priors["forward.crystal.occupancy"] = dist.Uniform(0.0, most)
    if kind == "stem" and moments and diffuse_sd > 0.0:
        priors["forward.diffuse"] = dist.Normal(1.0, diffuse_sd)
    if defocus_sd_A > 0.0:
        priors["forward.aberrations_A.C10"] = dist.Normal(aberrations_A["C10"], defocus_sd_A)
    if offset_sd_A > 0.0:
        priors["forward.offset_A"] = dist.Normal(0.0, offset_sd_A)
    return InverseProblem(forward, Poisson(dose), priors)


def _atoms(numbers, position_A, box_A, tile) -> Atoms:
    given = (numbers, position_A, box_A)
    if any(g is None for g in given) and any(g is not None for g in given):
        raise ValueError("numbers, position_A and box_A belong together")
    numbers, position_A, box_A = MOS2 if numbers is None else given
    atoms = Atoms(numbers, position_A, box_A)
    scattering_factors_A(atoms.elements, jnp.zeros(1))  # raises for an unknown element
    if len(tile) != 3:
        raise ValueError(f"tile = {tile}: boxes along x, y and z")
    return atoms.repeated(*(int(n) for n in tile))


def _columns(atoms: Atoms, column_A: float) -> tuple[int, ...]:
    """The column of each atom: the first one that is near enough, around the edges of the box."""
    place, box = np.asarray(atoms.position_A)[:, :2], np.asarray(atoms.box_A)[:2]
    first: list[int] = []
    columns = []
    for i, z in enumerate(atoms.numbers):
        apart = place[first] - place[i]
        apart = np.hypot(*(apart - box * np.round(apart / box)).T)
        same = np.array([atoms.numbers[f] == z for f in first], bool)
        near = np.flatnonzero(same & (apart <= column_A))
        columns.append(int(near[0]) if len(near) else len(first))
        first += [] if len(near) else [i]
    return tuple(columns)


def _shape(kind, box, sampling_A, energy_keV, semiangle_mrad, reach_mrad) -> tuple[int, int]:
    """Pixels of the wave, up to `BEYOND` the camera's edge, since what is scattered there may come
    back; of an image, such that the intensity of what passes the aperture does not alias."""
    reach = max(reach_mrad, semiangle_mrad) if kind == "stem" else semiangle_mrad / (0.75 * CUTOFF)
    needed = coarsest_A(reach, energy_keV)
    sampling_A = min(needed / BEYOND, FINE_A) if sampling_A is None else sampling_A
    shape = shape_over(box, sampling_A)
    ends = highest_angle_mrad((box[1] / shape[0], box[0] / shape[1]), energy_keV)
    if ends < reach * (1.0 - 1e-6):
        raise ValueError(
            f"pixels of {sampling_A:.4g} Å end at {ends:.4g} mrad, {reach:.4g} mrad are needed: "
            f"take sampling_A = {needed:.3g}"
        )
    return shape


def example(key, kind: Literal["stem", "hrtem"] = "stem", dose: float = 2e4):
    """Molybdenum disulphide whose columns are off by 0.07 Å, with half a sulphur column missing."""
    truth = problem(kind, dose=dose)
    crystal = truth.forward.crystal
    moved = np.random.default_rng(1).normal(0.0, 0.07, crystal.shift_A.shape)
    occupancy = np.where(np.arange(len(crystal.chosen)) == 1, 0.5, 1.0)
    truth = truth.at(
        {
            "forward.crystal.shift_A": moved,
            "forward.crystal.occupancy": occupancy,
            "forward.crystal.u_A2": [0.0075, 0.005],
        }
    )
    box = np.asarray(crystal.box_A)
    if kind == "stem":
        x = scan_of(box, 7, 7, 70.0, 10.0)
    else:
        y_A, x_A = (0.2 * np.arange(int(edge / 0.2)) for edge in box[1::-1])
        foci = jnp.asarray([-100.0, 0.0, 100.0])
        x = Series(foci, jnp.asarray(y_A, float), jnp.asarray(x_A, float))
    return truth, x, drawn_data(truth, x, key).astype(float)
