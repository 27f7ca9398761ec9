"""Thickness, tilt, lattice and thermal motion of a crystal from one convergent-beam pattern.

    counts(q) = Poisson(dose efficiency(q) (elastic(q) + share diffuse(q) (1 - sum elastic)))

The pattern is averaged over the places of the probe (PACBED); where the discs do not overlap it is
that of any one place. It is computed for all thicknesses at once
(`micjax.physics.electrons.pacbed`), and the thickness is a real number between them. The likelihood
has many maxima along thickness and tilt: fits begin at the likeliest of all of them.
"""

import numpy as np
import numpyro.distributions as dist

from micjax.core.problem import InverseProblem, drawn_data
from micjax.core.ranges import positive
from micjax.physics.electrons.grids import coarsest_A, shape_over
from micjax.physics.electrons.multislice import highest_angle_mrad
from micjax.physics.electrons.pacbed import (
    ELASTIC,
    Camera,
    camera,
    directions,
    elastic_mrad,
    finer_for,
    planes,
)
from micjax.physics.noise import Poisson
from micjax.problems.cbed.data import load as load
from micjax.problems.cbed.model import Convergent, Pixels
from micjax.problems.cbed.show import compare as compare
from micjax.problems.cbed.show import figures as figures
from micjax.problems.cbed.stages import conclude as conclude
from micjax.problems.cbed.stages import stages as stages
from micjax.problems.shared.stress import stress as stress

SRTIO3 = (
    [38, 22, 8, 8, 8],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0]],
)
LEAST = 1.5 / ELASTIC  # of `elastic_mrad`: up to a per cent of the electrons go further


def problem(
    thickness_A: float = 60.0,
    u_A2: float = 0.008,
    dose: float = 1e6,
    dose_sd: float = 0.05,
    semiangle_mrad: float = 8.0,
    energy_keV: float = 200.0,
    tilt_sd_mrad: float = 2.0,
    strain_sd: float = 0.003,
    centre_sd_mrad: float = 0.0,
    semiangle_sd_mrad: float = 0.0,
    most_A: float = 120.0,
    numbers: list | None = None,
    fractions: list | None = None,
    occupancy: list | None = None,
    cell_A: float | list = 3.905,
    slice_A: float = 2.0,
    pixels: int | list | None = None,
    finer: int | None = None,
    reach_mrad: float = 30.0,
) -> InverseProblem:
    """A crystal of one repeated cell with right angles, near a zone axis.

    **Arguments:**

    - `thickness_A`: where a fit of its own starts; the prior is flat from one cell to `most_A`.
    - `u_A2`: mean square displacement of an atom along an axis, to within a factor of 1.6.
    - `dose`: electrons of the whole beam, which the camera need not all see.
    - `dose_sd`: how far it may be off, as a fraction.
    - `semiangle_mrad`: of convergence.
    - `energy_keV`: of the electrons.
    - `tilt_sd_mrad`: how far the beam may be off the axis, along y and along x.
    - `strain_sd`: how far the cell may be from `cell_A`, as a fraction; 0 if it is known.
    - `centre_sd_mrad`: how far the aperture may be off the middle of the camera; 0 if it is known.
    - `semiangle_sd_mrad`: how far the aperture may be from `semiangle_mrad`; 0 if it is known.
    - `most_A`: the largest thickness.
    - `numbers`: atomic numbers of the atoms in a cell; with `fractions`, strontium titanate if not
        given.
    - `fractions`: [[x, y, z], ...] of each atom in units of the cell.
    - `occupancy`: how much of each atom is there; all of each if not given.
    - `cell_A`: edges along x, y, z (the beam), or the edge of a cube.
    - `slice_A`: thickness of a slice, at most; slices begin where planes of atoms are.
    - `pixels`: of the wave along each edge of the cell, or (y, x); as many as the camera and the
        thermal motion need if not given.
    - `finer`: beams in each vector of the reciprocal lattice, for the rocking curves; as many as
        the thickness and the camera need if not given.
    - `reach_mrad`: the camera sees no further.

    **Raises:** `ValueError` for numbers that are not positive, pixels that are too few for the
    camera or lose electrons.
    """
    positive(
        thickness_A=thickness_A,
        u_A2=u_A2,
        dose=dose,
        dose_sd=dose_sd,
        semiangle_mrad=semiangle_mrad,
        energy_keV=energy_keV,
        tilt_sd_mrad=tilt_sd_mrad,
        slice_A=slice_A,
        reach_mrad=reach_mrad,
    )
    box = np.broadcast_to(np.asarray(cell_A, float), (3,))
    if not box[2] < thickness_A < most_A:
        raise ValueError(f"thickness_A = {thickness_A} is not between {box[2]} and {most_A}")
    if (numbers is None) != (fractions is None):
        raise ValueError("numbers and fractions belong together")
    numbers, fractions = SRTIO3 if numbers is None else (numbers, fractions)
    places = np.asarray(fractions, float).reshape(len(numbers), 3) % 1.0
    layers = planes(places[:, 2], int(np.ceil(box[2] / slice_A * (1.0 - 1e-6))))
    widest = semiangle_mrad + 3.0 * (centre_sd_mrad + semiangle_sd_mrad)
    shape = _shape(pixels, box, energy_keV, reach_mrad + widest, elastic_mrad(u_A2, energy_keV))
    finer = finer_for(box, most_A, energy_keV, reach_mrad) if finer is None else finer
    forward = Convergent(
        thickness_A,
        np.zeros(2),
        u_A2,
        0.0,
        0.5,
        np.zeros(2),
        semiangle_mrad,
        energy_keV,
        places * box,
        np.ones(len(numbers)) if occupancy is None else occupancy,
        box,
        tuple(int(z) for z in numbers),
        layers,
        shape,
        int(np.ceil(most_A / box[2] * (1.0 + 5.0 * strain_sd))) + 1,
        directions(box, widest, energy_keV, finer, reach_mrad),
    )
    priors = {
        "forward.thickness_A": dist.Uniform(box[2] * (1.0 + 5.0 * strain_sd), most_A),
        "forward.tilt_mrad": dist.Normal(0.0, tilt_sd_mrad),
        "forward.u_A2": dist.LogNormal(np.log(u_A2), 0.5),
        "forward.diffuse_share": dist.Uniform(0.0, 1.0),
        "noise.dose": dist.LogNormal(np.log(dose), dose_sd),
    }
    if strain_sd > 0.0:
        priors["forward.strain"] = dist.Normal(0.0, strain_sd)
    if centre_sd_mrad > 0.0:
        priors["forward.centre_mrad"] = dist.Normal(0.0, centre_sd_mrad)
    if semiangle_sd_mrad > 0.0:
        about = dist.TruncatedNormal(semiangle_mrad, semiangle_sd_mrad, low=0.0)
        priors["forward.semiangle_mrad"] = about
    return InverseProblem(forward, Poisson(dose), priors)


def _shape(pixels, box, energy_keV, on_camera_mrad, elastic_mrad) -> tuple[int, int]:
    """Pixels of the wave over the cell."""
    if pixels is None:
        return shape_over(box, coarsest_A(max(on_camera_mrad, elastic_mrad), energy_keV))
    ny, nx = (int(n) for n in np.broadcast_to(pixels, (2,)))
    highest = highest_angle_mrad((box[1] / ny, box[0] / nx), energy_keV)
    for needed, purpose in (
        (on_camera_mrad, "reach_mrad and the aperture need"),
        (LEAST * elastic_mrad, "the thermal motion u_A2 lets the wave scatter up to"),
    ):
        if highest < needed * (1.0 - 1e-6):
            more = shape_over(box, coarsest_A(max(on_camera_mrad, elastic_mrad), energy_keV))
            raise ValueError(
                f"{purpose} {needed:.4g} mrad, but {ny} x {nx} pixels over the cell end at "
                f"{highest:.4g} mrad: take pixels = {list(more)}, or none for as many as needed"
            )
    return ny, nx


def example(key, dose: float = 1e6) -> tuple[InverseProblem, Camera, Pixels]:
    """Strontium titanate of 84.3 Å, 2.2 mrad off its [001] axis."""
    truth = problem(dose=dose).at(
        {
            "forward.thickness_A": 84.3,
            "forward.tilt_mrad": [1.1, -1.9],
            "forward.u_A2": 0.0071,
            "forward.strain": 0.0021,
            "forward.diffuse_share": 0.4,
        }
    )
    along = 1.5 * np.arange(-20, 21)
    x = camera(along, along)
    return truth, x, drawn_data(truth, x, key).astype(float)
