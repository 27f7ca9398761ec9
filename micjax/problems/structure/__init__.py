"""Atom columns, occupancies and thermal motion from 4D-STEM or a through-focal series.

    counts = Poisson(dose intensity(positions, occupancies, u))

The intensity is that of multislice, averaged over frozen phonons. Atoms of one element at the same
place (x, y) are a column, which moves as one: a projection does not tell their heights, which are
known. `solve` refines a structure that is right to within a few tenths of an Å.
"""

import logging
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.checks import not_negative, positive
from micjax.core.problem import InverseProblem
from micjax.inference.attempt import attempt
from micjax.inference.checkpoint import StopReason
from micjax.inference.errors.laplace import Laplace, laplace
from micjax.inference.errors.nuts import nuts
from micjax.inference.solution import Solution
from micjax.inference.solve import Stage, fit_stages
from micjax.inference.solvers.gauss_newton import FisherScoring, expected_hessian
from micjax.io import read
from micjax.physics.electrons import optics
from micjax.physics.electrons.grids import coarsest_A, shape_over
from micjax.physics.electrons.multislice import CUTOFF, highest_angle_mrad
from micjax.physics.electrons.potentials.layers import Atoms, layers
from micjax.physics.electrons.scattering import scattering_factors_A
from micjax.physics.noise import Poisson
from micjax.problems.shared.specimen import atoms_from, only_full, start_u_A2
from micjax.problems.structure.data import grid_A, listed_places_A, scan_from, series_from
from micjax.problems.structure.model import (
    Crystal,
    Imaged,
    Scan,
    Scanned,
    Series,
    normal_numbers,
    scan_of,
)
from micjax.problems.structure.peaks import annular, peaks
from micjax.report.figures import captioned, image_row

log = logging.getLogger("micjax")

# molybdenum disulphide in a cell with right angles, (x, y, z) in Å
MOS2 = (
    [42, 16, 16, 42, 16, 16],
    [[0, 0, 3.25], [0, 1.824, 1.69], [0, 1.824, 4.81]]
    + [[1.58, 2.737, 3.25], [1.58, 4.561, 1.69], [1.58, 4.561, 4.81]],
    [3.16, 5.473, 6.4],
)
BEYOND, FINE_A = 1.35, 0.12
APART = 0.97  # of a probe within half of the box
NEIGHBOURS = (
    "Only {:.1f} % of the probe lies within half of the box: it meets its neighbours. More tiles "
    "along x and y would keep them apart."
)
CHUNK = 2  # steps between two checkpoints
EXPLAINED = 1.5  # chi^2 for each pixel
UNEXPLAINED = (
    "The model does not explain the data (chi^2 per pixel {:.3g}): the errors are too small, and "
    "the values may be off by more. The residual shows where."
)


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
    chosen = tuple(c for c, i in enumerate(_first(column)) if atoms.numbers[i] in vacant)
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
    found = []
    for i, z in enumerate(atoms.numbers):
        apart = place[first] - place[i]
        apart = np.hypot(*(apart - box * np.round(apart / box)).T)
        same = np.array([atoms.numbers[f] == z for f in first], bool)
        near = np.flatnonzero(same & (apart <= column_A))
        found.append(int(near[0]) if len(near) else len(first))
        first += [] if len(near) else [i]
    return tuple(found)


def _first(column: tuple[int, ...]) -> np.ndarray:
    """An atom of each column."""
    return np.unique(column, return_index=True)[1]


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
    return truth, x, truth.noise(truth.forward(x)).sample(key).astype(float)


def load(
    file,
    channel: str | None = None,
    structure: str | None = None,
    numbers: list | None = None,
    position_A: list | None = None,
    box_A: list | None = None,
    step_A: float | list | None = None,
    mrad_per_px: float | list | None = None,
    centre_px: list | None = None,
    reach_mrad: float | None = None,
    origin_A: list | None = None,
    scan_rotation_deg: float = 0.0,
    places_A: str | list | None = None,
    defocus_A: list | None = None,
    counts_per_unit: float = 1.0,
    tile: list = [1, 1, 1],  # noqa: B006
    energy_keV: float = 200.0,
    offset_sd_A: float = 0.2,
    dose: float | None = None,
) -> tuple[dict[str, Any], Scan | Series, Array]:
    """Counts of a 4D-STEM data set [scan y, scan x, my, mx], of patterns at listed places
    [places, my, mx], or of a series of images [defocus, y, x]; from a microscope's file or a bare
    array (.npy, .npz, .tif).

    **Arguments:**

    - `channel`: which array of the file.
    - `structure`: CIF, XYZ, POSCAR ... of a cell with right angles, the beam along z.
    - `numbers`, `position_A`, `box_A`: the cell, where there is no `structure`; see `problem`.
    - `step_A`: between places of the probe, or pixels of an image, where the axes of the file are
        no lengths; one number, or (y, x).
    - `mrad_per_px`: of the camera, where its axes are no angles; one number, or (y, x).
    - `centre_px`: the middle of the direct disc, [row, column]; where the axes are 0 if they are
        angles, otherwise the middle of the mean pattern.
    - `reach_mrad`: pixels further out are left out; by default all that fit onto the camera.
    - `origin_A`: where in the box of the structure the first place or pixel is, (y, x); by default
        where the axes of the file begin, if they are lengths.
    - `scan_rotation_deg`: of the scan's x axis against that of the structure and the camera, from x
        towards y, around the first place.
    - `places_A`: [[y, x], ...] in the box for each pattern of a list, or a file that holds them.
    - `defocus_A`: of each image (positive: underfocus), where the first axis of the file is no
        length called defocus or C10.
    - `counts_per_unit`: of the values in the file; counts are rounded to whole electrons.
    - `tile`: boxes along x, y, z; together they hold the scan or the image.
    - `energy_keV`: of the electrons.
    - `offset_sd_A`: how far the scan, or each image, may be off.
    - `dose`: electrons for each place of the probe, or for each pixel of an image; by default the
        most that a place has, or the mean of the images.

    Pixels that are NaN are blind; where there are such, `dose` is needed. Neighbouring pixels of
    the camera are added up until they are as wide as those of the wave, wavelength / box.

    **Raises:** `ValueError` for another number of dimensions, values that are no counts, sizes
    that are not known, a scan that does not fit the box, besides what `micjax.io.read` raises.
    """
    positive(energy_keV=energy_keV, counts_per_unit=counts_per_unit)
    if not np.isfinite(scan_rotation_deg):
        raise ValueError(f"scan_rotation_deg = {scan_rotation_deg}: a number of degrees")
    sizes = {"step_A": step_A, "mrad_per_px": mrad_per_px, "reach_mrad": reach_mrad, "dose": dose}
    positive(**{name: given for name, given in sizes.items() if given is not None})
    if len(tile) != 3:
        raise ValueError(f"tile = {tile}: boxes along x, y and z")
    cell = {"numbers": numbers, "position_A": position_A, "box_A": box_A}
    atoms = atoms_from(structure, cell)
    field = read(file, channel)
    listed = places_A is not None
    if field.data.ndim not in ((3,) if listed else (3, 4)) or np.iscomplexobj(field.data):
        raise ValueError(
            f"{field.name}: {field.data.dtype} of the shape {field.data.shape} are neither 4D-STEM "
            "[scan y, scan x, my, mx], nor patterns [places, my, mx] at places_A, nor a series of "
            "images [defocus, y, x]"
        )
    options: dict[str, Any] = {
        "tile": tile,
        "energy_keV": energy_keV,
        "offset_sd_A": offset_sd_A,
        "vacant": [],
    }
    if atoms is not None:
        only_full(atoms)
        cell = {
            "numbers": list(atoms.numbers),
            "position_A": np.asarray(atoms.position_A, float).tolist(),
            "box_A": np.asarray(atoms.box_A, float).tolist(),
        }
        if u_A2 := start_u_A2(atoms):
            options["u_A2"] = u_A2
    options |= cell
    box = np.asarray(cell["box_A"], float) * np.asarray(tile)
    counts = np.round(counts_per_unit * field.data)
    if not np.isfinite(counts).any():
        raise ValueError(f"{field.name}: none of {counts.size} values is finite")
    if np.nanmin(counts) < 0.0 or not np.nanmax(counts) >= 1.0:
        raise ValueError(
            f"{field.name}: values from {np.nanmin(counts):g} to {np.nanmax(counts):g} are no "
            "electron counts: set counts_per_unit"
        )
    if field.data.ndim == 4 or listed:
        camera = (mrad_per_px, centre_px, reach_mrad, dose)
        if listed:
            places = listed_places_A(places_A, len(counts))
            counts = counts[:, None]
        else:
            places = grid_A(field, step_A, origin_A, scan_rotation_deg)
        return scan_from(field, counts, options, box, places, *camera)
    if scan_rotation_deg:
        raise ValueError("scan_rotation_deg is of a scan, and this is a series of images")
    return series_from(field, counts, options, box, step_A, origin_A, defocus_A, dose)


def solve(
    problem: InverseProblem,
    x: Scan | Series,
    y: Float[Array, "..."],
    *,
    key,
    checkpoint=None,
    resume: bool = False,
    on_chunk=None,
    steps: int = 20,
    sampler: Literal["none", "nuts"] = "none",
    samples: int = 300,
    warmup: int = 300,
    chains: int = 1,
) -> Solution:
    """Fisher scoring from the starting structure; Laplace errors, or draws of the posterior.

    **Arguments:**

    - `steps`: at most.
    - `sampler`: `none`, or `nuts` to sample the posterior from the best values on.
    - `samples`: draws of each chain after the warm-up.
    - `warmup`: transitions of each chain before them.
    - `chains`: how many chains.
    """
    y = jnp.asarray(y, dtype=float)
    expected = _shape_of(problem, x)
    if y.shape != expected:
        raise ValueError(f"the data have the shape {y.shape}, the model {expected}")
    run = {"checkpoint": checkpoint, "resume": resume, "on_chunk": on_chunk}
    found = fit_stages(problem, x, y, [Stage(FisherScoring(), steps, CHUNK)], **run)
    best = found.problem
    if found.stop_reason is StopReason.INTERRUPTED:
        return Solution(best, fit=found)
    errors = attempt("Laplace errors", _errors, best, x, y)
    posterior = None
    if sampler == "nuts":
        counts = {"samples": samples, "warmup": warmup, "chains": chains}
        posterior = attempt("posterior draws", nuts, best, x, y, key, **counts)
    metrics = {}
    if isinstance(best.forward, Scanned):
        metrics["probe_within_half_box"] = share = float(best.forward.apart())
        if share < APART:
            log.warning(NEIGHBOURS.format(100.0 * share))
    rate = np.asarray(best.noise(best.forward(x)).rate)
    on = np.broadcast_to(_efficiency(x) > 0, y.shape)
    chi2 = float(np.mean(((np.asarray(y) - rate) ** 2 / rate)[on]))
    vague = [n for n, ok in errors.identified.items() if not ok] if errors else []
    return Solution(
        best,
        fit=found,
        posterior=posterior,
        laplace=errors,
        metrics={"chi_squared_per_pixel": chi2, **metrics},
        table=_table(best, errors.sd() if errors else {}),
        statements=[
            *(f"{n} is not identified by these data." for n in vague),
            *([UNEXPLAINED.format(chi2)] if chi2 > EXPLAINED else []),
        ],
    )


def _errors(problem: InverseProblem, x, y) -> Laplace:
    return laplace(problem, x, y, hessian=expected_hessian(problem, x, y))


def _shape_of(problem: InverseProblem, x: Scan | Series) -> tuple[int, ...]:
    if isinstance(problem.forward, Scanned) != isinstance(x, Scan):
        raise ValueError(
            f"data of a {type(x).__name__} for a problem of kind "
            f"{'stem' if isinstance(problem.forward, Scanned) else 'hrtem'}"
        )
    if isinstance(x, Scan):
        return (*x.position_A.shape[:2], len(x.y_mrad), len(x.x_mrad))
    return len(x.defocus_A), len(x.y_A), len(x.x_A)


def _efficiency(x: Scan | Series) -> np.ndarray:
    return np.asarray(x.efficiency) if isinstance(x, Scan) else np.ones(())


def _table(problem: InverseProblem, sd) -> list[dict[str, Any]]:
    """A row for each column."""
    crystal, first = problem.forward.crystal, _first(problem.forward.crystal.column)
    place = np.asarray(crystal.at_rest().position_A)[first]
    # what is held has no error
    error = sd.get("forward.crystal.shift_A", np.full((len(first), 2), np.nan))
    spread = sd.get("forward.crystal.occupancy", np.full(len(crystal.chosen), np.nan))
    rows = [
        {
            "column": c,
            "Z": crystal.numbers[i],
            "x_A": float(place[c, 0]),
            "x_sd_A": float(error[c, 0]),
            "y_A": float(place[c, 1]),
            "y_sd_A": float(error[c, 1]),
        }
        for c, i in enumerate(first)
    ]
    for k, c in enumerate(crystal.chosen):
        rows[c]["occupancy"] = float(crystal.occupancy[k])
        rows[c]["occupancy_sd"] = float(spread[k])
    return rows


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Each unknown against the truth; positions also as a peak fit and the start have them."""
    true, best = truth.values(), solution.problem.values()
    sd = {} if solution.laplace is None else solution.laplace.sd()
    rows = []
    for n in (n for n in best if n in true):
        wrong = np.abs(np.asarray(best[n]) - np.asarray(true[n]))
        row = {
            "quantity": n.rpartition(".")[2],
            "median |error|": float(np.median(wrong)),
            "worst": float(wrong.max()),
        }
        if n in sd:
            row["median sd"] = float(np.median(sd[n]))
            row["errors / sd (rms)"] = float(np.sqrt(np.mean((wrong / sd[n]) ** 2)))
        rows.append(row)
    moved = np.asarray(truth.forward.crystal.shift_A)
    others = {"shift_A, the start": moved}
    if isinstance(x, Scan):
        others["shift_A, peaks of the dark-field image"] = peak_shifts(truth, x, y) - moved
    for n, wrong in others.items():
        size = np.abs(wrong)
        rows.append(
            {"quantity": n, "median |error|": float(np.median(size)), "worst": float(size.max())}
        )
    return rows


def peak_shifts(problem: InverseProblem, x: Scan, y, inner_mrad: float | None = None):
    """`shift_A` as Gaussians fitted to the annular dark-field image have it."""
    forward = problem.forward
    crystal, first = forward.crystal, _first(forward.crystal.column)
    start = np.asarray(crystal.position_A)[first, 1::-1]
    inner = 1.5 * float(forward.semiangle_mrad) if inner_mrad is None else inner_mrad
    found = peaks(
        annular(x, y, inner),
        np.asarray(x.position_A),
        start,
        [crystal.numbers[i] for i in first],
        np.asarray(crystal.box_A)[1::-1],
    )
    return (found - start)[:, ::-1]


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Mean pattern and dark-field image, or the first image: measured, model, what is left."""
    rate, counts = (
        np.asarray(a) for a in (solution.problem.noise(solution.problem.forward(x)).rate, y)
    )

    def row(reduce, text, power=1.0):
        seen, model = reduce(counts), reduce(rate)
        left = (seen - model) / np.sqrt(np.maximum(model, 1e-6))
        panels = {"measured": seen**power, "model": model**power, "residual / noise": left}
        return captioned(image_row(panels, residuals=["residual / noise"]), text)

    if isinstance(x, Series):
        return {
            f"Image {i + 1}": lambda i=i: row(lambda a: a[i], f"Defocus {x.defocus_A[i]:.4g} Å.")
            for i in range(len(counts))
        }
    inner = 1.5 * float(solution.problem.forward.semiangle_mrad)
    return {
        "Pattern": lambda: row(lambda a: a.sum((0, 1)), "Square roots of the sum of all.", 0.5),
        "Dark field": lambda: row(
            lambda a: annular(x, a, inner), f"Counts beyond {inner:.4g} mrad, place by place."
        ),
    }
