"""Thickness, tilt, lattice and thermal motion of a crystal from one convergent-beam pattern.

    counts(q) = Poisson(dose efficiency(q) (elastic(q) + share diffuse(q) (1 - sum elastic)))

The pattern is averaged over the places of the probe (PACBED); where the discs do not overlap it is
that of any one place. It is computed for all thicknesses at once
(`micjax.physics.electrons.pacbed`), and the thickness is a real number between them. The likelihood
has many maxima along thickness and tilt: `solve` looks everywhere first.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.checks import positive
from micjax.core.problem import InverseProblem, parameter
from micjax.inference.attempt import attempt
from micjax.inference.checkpoint import StopReason
from micjax.inference.errors.laplace import Laplace, laplace
from micjax.inference.solution import Solution
from micjax.inference.solve import Stage, fit_stages
from micjax.inference.solvers.gauss_newton import FisherScoring, expected_hessian
from micjax.io import read
from micjax.physics.electrons import optics
from micjax.physics.electrons.grids import coarsest_A, shape_over
from micjax.physics.electrons.multislice import highest_angle_mrad
from micjax.physics.electrons.pacbed import (
    ELASTIC,
    Camera,
    Directions,
    Rocking,
    between,
    camera,
    diffuse,
    directions,
    elastic_mrad,
    finer_for,
    mean_transmission,
    planes,
    rocking,
    seen,
)
from micjax.physics.electrons.potentials.layers import Atoms
from micjax.physics.noise import Poisson
from micjax.problems.cbed.data import brightest_disc, cell_of
from micjax.problems.cbed.fit import everywhere
from micjax.problems.shared.angles import axes_mrad, centred
from micjax.problems.shared.specimen import atoms_from
from micjax.report.figures import captioned, image_row

Pixels = Float[Array, "my mx"]
SRTIO3 = (
    [38, 22, 8, 8, 8],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0]],
)
LEAST = 1.5 / ELASTIC  # of `elastic_mrad`: up to a per cent of the electrons go further
LOST = 0.01  # of the electrons, which is told
CHUNK = 3  # steps between two checkpoints
EXPLAINED = 1.5  # chi^2 for each pixel: more than any noise of some hundred pixels
UNEXPLAINED = (
    "The model does not explain the pattern (chi^2 per pixel {:.3g}): the errors are too small, "
    "and the values may be off by more. The residual shows where."
)
TOO_COARSE = (
    "The grid of {} x {} pixels over the cell loses {:.2g} % of the electrons, which the fit takes "
    "for absorbed ones: give a smaller u_A2 to start from, or more pixels."
)


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
    for needed, what in (
        (on_camera_mrad, "reach_mrad and the aperture need"),
        (LEAST * elastic_mrad, "the thermal motion u_A2 lets the wave scatter up to"),
    ):
        if highest < needed * (1.0 - 1e-6):
            more = shape_over(box, coarsest_A(max(on_camera_mrad, elastic_mrad), energy_keV))
            raise ValueError(
                f"{what} {needed:.4g} mrad, but {ny} x {nx} pixels over the cell end at "
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
    return truth, x, truth.noise(truth.forward(x)).sample(key).astype(float)


def load(
    file,
    channel: str | None = None,
    structure: str | None = None,
    numbers: list | None = None,
    fractions: list | None = None,
    cell_A: float | list | None = None,
    mrad_per_px: float | list | None = None,
    centre_px: list | None = None,
    rotation_deg: float = 0.0,
    reach_mrad: float | None = None,
    counts_per_unit: float = 1.0,
    dose: float | None = None,
    energy_keV: float = 200.0,
    semiangle_mrad: float = 8.0,
) -> tuple[dict[str, Any], Camera, Pixels]:
    """Counts of a pattern from a microscope's file, or from a bare array (.npy, .npz, .tif).

    **Arguments:**

    - `channel`: which image of the file.
    - `structure`: CIF, XYZ, POSCAR ... of the cell, the beam along z.
    - `numbers`, `fractions`, `cell_A`: the cell, where there is no `structure`; see `problem`.
    - `mrad_per_px`: pixel size, where the axes of the file are no angles; one number, or (y, x).
    - `centre_px`: the middle of the direct disc, [row, column]; where the axes are 0 if they are
        angles, otherwise the middle of the brightest disc.
    - `rotation_deg`: of the camera's x axis against that of the crystal, from x towards y.
    - `reach_mrad`: pixels further out are left out; by default all that fit onto the camera.
    - `counts_per_unit`: of the values in the file; counts are rounded to whole electrons.
    - `dose`: electrons of the whole beam, to within 5 %; by default as many as the camera has seen,
        to within 30 %.
    - `energy_keV`: of the electrons.
    - `semiangle_mrad`: of convergence, to within 2 %.

    **Raises:** `ValueError` for values that are no counts, a pixel size or a crystal that is not
    known, besides what `micjax.io.read` raises. Pixels that are NaN are blind.
    """
    sizes = {"mrad_per_px": mrad_per_px, "reach_mrad": reach_mrad, "dose": dose}
    positive(
        energy_keV=energy_keV,
        semiangle_mrad=semiangle_mrad,
        counts_per_unit=counts_per_unit,
        **{name: given for name, given in sizes.items() if given is not None},
    )
    given = {"numbers": numbers, "fractions": fractions, "cell_A": cell_A}
    atoms = atoms_from(structure, given)
    field = read(file, channel)
    if field.data.ndim != 2 or min(field.data.shape) < 2:
        raise ValueError(
            f"{field.name}: shape {field.data.shape} is no diffraction pattern [my, mx]"
        )
    if np.iscomplexobj(field.data):
        raise ValueError(f"{field.name}: complex values are no electron counts")
    blind = ~np.isfinite(field.data)
    counts = np.round(counts_per_unit * np.where(blind, 0.0, field.data))
    if counts.min() < 0.0 or counts.max() < 1.0:
        raise ValueError(
            f"{field.name}: a diffraction pattern with values from {counts.min():g} to "
            f"{counts.max():g} has no electron counts: set counts_per_unit"
        )
    axes = axes_mrad(field, field.axes, mrad_per_px, energy_keV)
    steps = [float(abs(a[1] - a[0])) for a in axes]
    if mrad_per_px is not None and centre_px is None:
        centre_px = brightest_disc(counts, [semiangle_mrad / s for s in steps])
    y, x = axes if centre_px is None else centred(axes, centre_px)
    fits = float(min(-y.min(), y.max(), -x.min(), x.max()))
    if not fits > semiangle_mrad:
        raise ValueError(f"the pattern ends {fits:.4g} mrad from its middle, in the direct disc")
    reach_mrad = fits if reach_mrad is None else reach_mrad
    if not semiangle_mrad < reach_mrad:
        raise ValueError(f"reach_mrad = {reach_mrad}: lies in the direct disc, {semiangle_mrad}")
    there = camera(y, x, np.deg2rad(rotation_deg))
    outside = np.linalg.norm(np.asarray(there.direction_mrad), axis=-1) > reach_mrad
    there = there._replace(efficiency=jnp.asarray(~(blind | outside), float))
    options: dict[str, Any] = {
        "dose": float(counts.sum()) if dose is None else dose,
        "dose_sd": 0.3 if dose is None else 0.05,
        "energy_keV": energy_keV,
        "semiangle_mrad": semiangle_mrad,
        "reach_mrad": float(reach_mrad),
        "centre_sd_mrad": float(there.pixel_mrad),
        "semiangle_sd_mrad": 0.02 * semiangle_mrad,
    }
    options |= given if atoms is None else cell_of(atoms)
    return options, there, jnp.asarray(np.where(blind | outside, 0.0, counts), float)


def solve(
    problem: InverseProblem,
    x: Camera,
    y: Pixels,
    *,
    key,
    checkpoint=None,
    resume: bool = False,
    on_chunk=None,
    steps: int = 20,
    starts: int = 3,
) -> Solution:
    """The best of several fits, from the likeliest thicknesses and tilts; Laplace errors.

    **Arguments:**

    - `steps`: of Fisher scoring, at most, for each start.
    - `starts`: how many.
    """
    y = jnp.asarray(y, dtype=float)
    stage = Stage(
        FisherScoring(),
        steps,
        CHUNK,
        starts=lambda problem, x, y, candidates, key: everywhere(problem, x, y, starts),
    )
    run = {"checkpoint": checkpoint, "resume": resume, "on_chunk": on_chunk}
    found = fit_stages(problem, x, y, [stage], **run)
    if found.stop_reason is StopReason.INTERRUPTED:
        return Solution(found.problem, fit=found)
    errors = attempt("Laplace errors", _errors, found.problem, x, y)
    vague = [n for n, ok in errors.identified.items() if not ok] if errors else []
    rate = found.problem.noise(found.problem.forward(x)).rate
    on = x.efficiency > 0
    chi2 = float(jnp.sum(jnp.where(on, (y - rate) ** 2 / rate, 0.0)) / jnp.sum(on))
    lost = float(found.problem.forward.lost())
    return Solution(
        found.problem,
        fit=found,
        laplace=errors,
        metrics={"chi_squared_per_pixel": chi2, "electrons_lost_beyond_grid": lost},
        statements=[
            *(f"{n} is not identified by this pattern." for n in vague),
            *([TOO_COARSE.format(*found.problem.forward.shape, 100 * lost)] if lost > LOST else []),
            *([UNEXPLAINED.format(chi2)] if chi2 > EXPLAINED else []),
        ],
    )


def _errors(problem: InverseProblem, x: Camera, y: Pixels) -> Laplace:
    # a dense Hessian of all pixels would take gigabytes
    return laplace(problem, x, y, hessian=expected_hessian(problem, x, y))


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Each unknown against the truth."""
    true, best = truth.values(), solution.problem.values()
    sd = {} if solution.laplace is None else solution.laplace.sd()
    return [
        {
            "quantity": n.partition(".")[2],
            "truth": [float(v) for v in np.ravel(true[n])],
            "estimate": [float(v) for v in np.ravel(best[n])],
            "sd": [float(v) for v in np.ravel(sd.get(n, np.nan))],
        }
        for n in best
    ]


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Counts, model, and what is left in units of its noise."""
    rate = np.asarray(solution.problem.noise(solution.problem.forward(x)).rate)
    on, counts = np.asarray(x.efficiency) > 0, np.asarray(y)

    def pattern():
        row = {"measured": np.sqrt(counts), "model": np.sqrt(rate)}
        row["residual / noise"] = np.where(on, (counts - rate) / np.sqrt(rate), np.nan)
        figure = image_row(row, residuals=["residual / noise"])
        return captioned(figure, "Square roots of the counts, and what the model leaves of them.")

    return {"Pattern": pattern}
