"""`micjax simulate`: from a structure file to STEM images, diffraction patterns, HRTEM images."""

import contextlib
import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import scipy.fft
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.spatial import cKDTree

from micjax.core.progress import progress
from micjax.core.ranges import check_ranges
from micjax.io import Axis, Field, create_nexus
from micjax.io.structures import read_structure
from micjax.physics import devices, optics
from micjax.physics.detectors import (
    annulus,
    beam_stop,
    blurred,
    collected,
    diffraction,
    gaussian_mtf,
    pixelated,
    source_blurred,
)
from micjax.physics.multislice import band_limit, highest_angle_mrad, multislice, transmission
from micjax.physics.phonons import displaced
from micjax.physics.potentials import Atoms, atoms_of, capacities, potential_VA
from micjax.physics.scattering import table
from micjax.physics.stem import GPU_WAVES, placed, scanned
from micjax.run.names import plain_name, unknown_name

log = logging.getLogger("micjax")

CLOSEST_A = 0.5  # atoms nearer to each other are a mistake in the file
SPARE = 2.0  # room for atoms that move from slice to slice
KEPT = 0.97  # of a probe has to lie within half of the cell
MANY = 2000  # atoms of an element in a slice, from which on a fast Fourier transform is quicker
ONLY = {  # settings that only some kinds have
    ("stem",): ("detectors", "source_fwhm_A", "patterns"),
    ("cbed",): ("position_A", "averaged"),
    ("hrtem",): ("focal_spread_A", "angular_spread_mrad"),
    ("stem", "cbed"): ("scan", "scan_size_A", "outer_mrad", "beam_stop_mrad"),
}
OF_PATTERNS = ("outer_mrad", "beam_stop_mrad", "mtf")


class SimulatePlan(pydantic.BaseModel):
    """A structure, a microscope, and what is to be computed. Pairs are (y, x), tiles (x, y, z)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    what: Literal["stem", "cbed", "hrtem"]
    structure: str
    energy_keV: pydantic.PositiveFloat = 200.0
    tile: tuple[pydantic.PositiveInt, pydantic.PositiveInt, pydantic.PositiveInt] = (1, 1, 1)
    sampling_A: pydantic.PositiveFloat = 0.05  # at most
    slice_A: pydantic.PositiveFloat = 2.0  # at most
    finer: pydantic.PositiveInt = 2  # pixels of the potential: see `transmission`
    table: str = "lobato"
    projection: Literal["exact", "gridded", "finite"] | None = None  # exact, of many atoms gridded
    u_A2: float | dict[str, float] = 0.0  # mean square displacement, by element if they differ
    phonons: pydantic.NonNegativeInt = 0  # frozen configurations; 0: a damped potential
    tilt_mrad: tuple[float, float] = (0.0, 0.0)
    semiangle_mrad: pydantic.PositiveFloat = 20.0  # of the probe, or of the objective aperture
    aberrations: dict[str, float] = {}  # polar, Å and rad: C10 is minus the defocus
    focal_spread_A: pydantic.NonNegativeFloat = 0.0  # hrtem
    angular_spread_mrad: pydantic.NonNegativeFloat = 0.0  # hrtem
    detectors: dict[str, tuple[float, float]] = {
        "bright_field": (0.0, 10.0),
        "annular_bright_field": (10.0, 20.0),
        "haadf": (60.0, 150.0),
    }  # inner and outer angle, mrad
    scan: tuple[pydantic.PositiveInt, pydantic.PositiveInt] = (32, 32)
    scan_size_A: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat] | None = None  # one cell
    position_A: tuple[float, float] = (0.0, 0.0)  # of the probe of cbed
    averaged: bool = False  # cbed over all places of the scan
    source_fwhm_A: pydantic.NonNegativeFloat = 0.0  # blurs the images of stem
    patterns: bool = False  # stem: keep every pattern, in patterns.nxs
    outer_mrad: pydantic.PositiveFloat | None = None  # of patterns
    # over patterns: radius of its disc, width of its arm along +x
    beam_stop_mrad: tuple[pydantic.PositiveFloat, pydantic.NonNegativeFloat] | None = None
    # of the camera, a Gaussian: at the highest frequency of the pixels of a pattern or hrtem image
    mtf: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    dose: pydantic.PositiveFloat | None = None  # electrons a pattern, or an image pixel
    seed: pydantic.NonNegativeInt = 0
    out: str | None = None


def make_simulate_plan(given: Mapping[str, Any]) -> SimulatePlan:
    """**Raises:** `ValueError` that names every key which is unknown or of another kind, or one
    that has nothing to do with what is computed."""
    try:
        plan = SimulatePlan.model_validate(dict(given))
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(map(_fault, error.errors()))) from error
    for name, value in plan.model_dump().items():
        check_ranges(name, value)
    for name in plan.detectors:
        plain_name(name)
    fields = SimulatePlan.model_fields
    for name in (name for name in fields if getattr(plan, name) != fields[name].default):
        for kinds, names in ONLY.items():
            if name in names and plan.what not in kinds:
                raise ValueError(f"{name} is a setting of {' and '.join(kinds)}, not {plan.what}")
        if name in OF_PATTERNS and plan.what == "stem" and not plan.patterns:
            raise ValueError(f"{name} is a setting of patterns, which patterns=true keeps")
    return plan


def _fault(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return unknown_name("setting", key, SimulatePlan.model_fields)
    return f"{key} is {error['input']!r}: {error['msg']}"


class Setup(NamedTuple):
    """What all kinds have in common."""

    atoms: Atoms
    cell_A: np.ndarray  # of what was tiled, (x, y, z)
    shape: tuple[int, int]
    sampling_A: tuple[float, float]
    thickness_A: np.ndarray
    angles: optics.Angles
    limit: jax.Array
    highest_mrad: float
    potential: Callable[[jax.Array], jax.Array]  # of the atoms in one moment, on finer pixels
    moments: jax.Array  # keys: of frozen configurations, or one of damped atoms
    mesh: Mesh | None  # of several devices


class Simulated(NamedTuple):
    """Results by name, and what there is to say."""

    fields: dict[str, Field]
    said: list[str]


def simulate(plan: SimulatePlan, folder: pathlib.Path) -> Simulated:
    """**Raises:** `ValueError`, `OSError`, `ImportError` for what cannot be computed."""
    setup = prepare(plan)
    kind = {"stem": _stem, "cbed": _cbed, "hrtem": _hrtem}[plan.what]
    fields, said = kind(plan, setup, folder)
    (ny, nx), (dy, dx) = setup.shape, setup.sampling_A
    first = (
        f"{len(setup.atoms.numbers)} atoms, {len(setup.thickness_A)} slices, {ny} x {nx} pixels of "
        f"{dy:.4g} x {dx:.4g} Å, up to {setup.highest_mrad:.4g} mrad."
    )
    if setup.mesh is not None:
        said = [*said, f"Devices: {setup.mesh.size}."]
    return Simulated(fields, [first, *said])


# --- the specimen --------------------------------------------------------------------------------


def prepare(plan: SimulatePlan) -> Setup:
    """The specimen and its grid.

    **Raises:** `ValueError` for a structure or a setting that makes no sense.
    """
    table(plan.table)
    optics.cartesian(plan.aberrations)
    cell = _cell(plan.structure, plan.u_A2)
    nx, ny, nz = plan.tile
    atoms = cell.repeated(nx, ny, nz)
    _apart(atoms)
    box = np.asarray(atoms.box_A, float)
    shape = (quick_size(box[1] / plan.sampling_A), quick_size(box[0] / plan.sampling_A))
    sampling = (box[1] / shape[0], box[0] / shape[1])
    cell_A = np.asarray(cell.box_A, float)
    slices = int(np.ceil(cell_A[2] / plan.slice_A - 1e-9))
    thickness = np.full(nz * slices, cell_A[2] / slices)
    angles = optics.angles_mrad(shape, np.asarray(sampling), optics.wavelength_A(plan.energy_keV))
    highest = highest_angle_mrad(sampling, plan.energy_keV)
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
    cells = np.asarray(_scan_size_A(plan, cell_A)) / cell_A[1::-1]
    if plan.source_fwhm_A and not np.allclose(cells, np.round(cells), atol=1e-6):
        raise ValueError(
            f"source_fwhm_A needs a scan that repeats itself; this one goes over {cells[0]:.4g} x "
            f"{cells[1]:.4g} cells: whole numbers are allowed"
        )
    potential = _potential(plan, atoms, tuple(plan.finer * n for n in shape), thickness)
    moments = jax.random.split(jax.random.key(plan.seed), max(1, plan.phonons))
    jax.eval_shape(potential, moments[0])  # what it refuses is told now
    setup = Setup(
        atoms,
        cell_A,
        shape,
        sampling,
        thickness,
        angles,
        band_limit(shape, sampling),
        highest,
        potential,
        moments,
        devices.row() if jax.local_device_count() > 1 else None,
    )
    if plan.what == "cbed" or plan.patterns:
        _camera_axes(plan, setup, ("y", "x"))  # as above
    return setup


def _cell(path: str, u_A2: float | Mapping[str, float]) -> Atoms:
    """**Raises:** what `read_structure` raises; `ValueError` for an element that is not there."""
    structure = read_structure(path)
    if not isinstance(u_A2, Mapping):
        return atoms_of(structure, u_A2)
    symbols = structure.get_chemical_symbols()
    for element in u_A2:
        if element not in symbols:
            raise ValueError(f"u_A2: {unknown_name('element', element, sorted(set(symbols)))}")
    return atoms_of(structure, np.asarray([u_A2.get(s, 0.0) for s in symbols]))


def _apart(atoms: Atoms) -> None:
    box = np.asarray(atoms.box_A, float)
    tree = cKDTree(np.mod(np.asarray(atoms.position_A, float), box) % box, boxsize=box)
    for i, j in sorted(tree.query_pairs(CLOSEST_A))[:1]:
        raise ValueError(f"atoms {i} and {j} are less than {CLOSEST_A} Å apart; one is superfluous")


def quick_size(least: float) -> int:
    """The next even number without a prime factor above 5, which an FFT likes."""
    return 2 * scipy.fft.next_fast_len(max(1, int(np.ceil(0.5 * least - 1e-9))), real=True)


def _potential(plan: SimulatePlan, atoms: Atoms, shape, thickness_A):
    """The potential of a moment, which a key stands for."""
    projection = plan.projection
    if projection is None:
        projection = "gridded" if max(capacities(atoms, thickness_A)) >= MANY else "exact"
    room = capacities(atoms, thickness_A, SPARE if plan.phonons else 1.0, projection)
    options = {"table": plan.table, "projection": projection, "capacity": room}

    def potential(key):
        now = displaced(key, atoms) if plan.phonons else atoms
        return potential_VA(now, shape, thickness_A, **options)

    return potential


def _means(function: Callable, setup: Setup, given: list[jax.Array]) -> Iterator[Any]:
    """For each of what is given the mean of function(potential, given) over the moments."""
    mesh, count = setup.mesh if len(setup.moments) > 1 else None, len(setup.moments)

    def at(key, one):
        return function(setup.potential(key), one)

    at_one = jax.jit(at)
    on_all = jax.jit(lambda keys, one: devices.mean(lambda key: at(key, one), keys, mesh))
    with progress("configurations", len(given) * count) as show:

        def watched(before):
            for done, key in enumerate(setup.moments, before + 1):
                yield key
                show(done)

        for i, one in enumerate(given):
            if mesh is None:
                yield devices.mean(lambda key, one=one: at_one(key, one), watched(i * count))
            else:
                yield on_all(setup.moments, one)
                show((i + 1) * count)


def _behind(plan: SimulatePlan, setup: Setup, potential, waves):
    grid = (setup.thickness_A, setup.sampling_A)
    return multislice(waves, potential, *grid, plan.energy_keV, tilt_mrad=plan.tilt_mrad)


# --- stem ----------------------------------------------------------------------------------------


def _stem(plan: SimulatePlan, setup: Setup, folder: pathlib.Path):
    masks = jnp.stack([annulus(setup.angles, *ends) for ends in plan.detectors.values()])
    probe, said = _probe(plan, setup)
    lines = _places(plan, setup)
    together = 1 if setup.mesh is None else setup.mesh.size  # a line for each device
    count, rng = len(setup.moments), np.random.default_rng(plan.seed)

    def detect(patterns):
        seen = collected(patterns, masks)
        return (seen, _on_camera(plan, setup, patterns)) if plan.patterns else (seen,)

    make = jax.jit(lambda key: transmission(setup.potential(key), plan.energy_keV, setup.limit))

    @jax.jit
    def scan(places, probe, t):
        seen = scanned(
            probe,
            places.reshape(-1, 2),
            t,
            setup.thickness_A,
            setup.sampling_A,
            plan.energy_keV,
            detect,
            tilt_mrad=plan.tilt_mrad,
            limit=setup.limit,
            mesh=setup.mesh,
        )
        return [a.reshape(*places.shape[:2], *a.shape[1:]) / count for a in seen]

    y, x = (Axis(n, v * 0.1, "nm") for n, v in (("y", lines[:, 0, 0]), ("x", lines[0, :, 1])))
    unit = "" if plan.dose is None else "electrons"
    axes = (y, x, *_camera_axes(plan, setup, ("ky", "kx")))
    file = create_nexus(folder / "patterns.nxs", "patterns", axes)
    images = np.zeros((*plan.scan, len(masks)))
    with (
        progress("lines", count * len(lines)) as show,
        file if plan.patterns else contextlib.nullcontext() as kept,
    ):
        for c, key in enumerate(setup.moments):
            t = make(key)
            if setup.mesh is not None:  # once to each device, not with each line
                t = jax.device_put(t, NamedSharding(setup.mesh, PartitionSpec()))
            for first in range(0, len(lines), together):
                some = lines[first : first + together]
                seen, *patterns = scan(jnp.asarray(some), probe, t)
                images[first : first + together] += np.asarray(seen)
                for p in patterns:
                    kept[first : first + together] += np.asarray(p, np.float32)
                    kept.file.flush()
                show(c * len(lines) + first + len(some))
        if plan.patterns and plan.dose:
            for line in range(len(kept)):
                kept[line] = _counted(plan, kept[line], rng)
            kept.attrs["units"] = unit  # until now they were fractions of the beam
    images = np.moveaxis(images, -1, 0)
    if plan.source_fwhm_A:
        size = _scan_size_A(plan, setup.cell_A)
        step = (size[0] / plan.scan[0], size[1] / plan.scan[1])
        images = np.asarray(source_blurred(jnp.asarray(images), step, plan.source_fwhm_A))
    counted = _counted(plan, images, rng)
    fields = {
        n: Field(one, (y, x), unit, n) for n, one in zip(plan.detectors, counted, strict=True)
    }
    if plan.patterns:
        outer = _outer_mrad(plan, setup)
        of = ", of a source without a size" if plan.source_fwhm_A else ""
        said.append(f"All patterns, up to {outer:.4g} mrad{of}, are in patterns.nxs.")
    return fields, said


def _places(plan: SimulatePlan, setup: Setup) -> np.ndarray:
    """(y, x) of each place, `[ny, nx, 2]`, over one cell if nothing else is said."""
    size = _scan_size_A(plan, setup.cell_A)
    y, x = (np.arange(n) * s / n for n, s in zip(plan.scan, size, strict=True))
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)


def _scan_size_A(plan: SimulatePlan, cell_A: np.ndarray) -> tuple[float, float]:
    return plan.scan_size_A or (float(cell_A[1]), float(cell_A[0]))


def _outer_mrad(plan: SimulatePlan, setup: Setup) -> float:
    return plan.outer_mrad or 0.999 * setup.highest_mrad


def _on_camera(plan: SimulatePlan, setup: Setup, patterns):
    """What comes past the beam stop, as the camera blurs it, up to an angle."""
    if plan.beam_stop_mrad is not None:
        patterns = patterns * beam_stop(setup.angles, *plan.beam_stop_mrad)
    return pixelated(_camera(plan, patterns), setup.angles, _outer_mrad(plan, setup))


def _camera_axes(plan: SimulatePlan, setup: Setup, names: tuple[str, str]) -> tuple[Axis, ...]:
    shape = jax.eval_shape(lambda p: _on_camera(plan, setup, p), jnp.zeros(setup.shape)).shape
    return tuple(
        Axis(n, (np.arange(size) - size // 2) * float(abs(a.ravel()[1])), "mrad")
        for n, size, a in zip(names, shape, setup.angles, strict=True)
    )


def _camera(plan: SimulatePlan, images):
    return images if plan.mtf == 1.0 else blurred(images, gaussian_mtf(images.shape[-2:], plan.mtf))


def _probe(plan: SimulatePlan, setup: Setup) -> tuple[jax.Array, list[str]]:
    wavelength = optics.wavelength_A(plan.energy_keV)
    coefficients = optics.cartesian(plan.aberrations)
    probe = optics.probe(setup.angles, plan.semiangle_mrad, coefficients, wavelength)
    within = [
        np.abs(np.fft.fftfreq(n)) < 0.25 for n in setup.shape
    ]  # half of the cell around the probe
    intensity = np.abs(np.asarray(probe)) ** 2
    share = float(intensity[np.ix_(*within)].sum() / intensity.sum())
    if share >= KEPT:
        return probe, []
    said = (
        f"Only {100.0 * share:.1f} % of the probe lies within half of the cell: it meets its "
        "neighbours. More tiles along x and y would keep them apart."
    )
    log.warning(said)
    return probe, [said]


def _counted(plan: SimulatePlan, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Electrons, with their noise, if there is a dose."""
    if plan.dose is None:
        return fractions
    return rng.poisson(plan.dose * np.maximum(fractions, 0.0)).astype(float)


# --- cbed ----------------------------------------------------------------------------------------


def _cbed(plan: SimulatePlan, setup: Setup, folder: pathlib.Path):
    probe, said = _probe(plan, setup)
    places = _places(plan, setup).reshape(-1, 2) if plan.averaged else np.array([plan.position_A])
    at_once = max(1, GPU_WAVES // math.prod(setup.shape))

    def both(potential, places):
        after = _behind(plan, setup, potential, placed(probe, places, setup.sampling_A))
        return after, diffraction(after)

    some = [jnp.asarray(places[i : i + at_once]) for i in range(0, len(places), at_once)]
    total = elastic = 0.0
    for wave, pattern in _means(both, setup, some):
        total, elastic = total + pattern.sum(0), elastic + diffraction(wave).sum(0)
    total, elastic = total / len(places), elastic / len(places)
    shown = {"pattern": total}
    if plan.phonons > 1:
        shown |= {"elastic": elastic, "thermal_diffuse": total - elastic}
    rng = np.random.default_rng(plan.seed)
    return {name: _pattern(plan, setup, name, of, rng) for name, of in shown.items()}, said


def _pattern(plan: SimulatePlan, setup: Setup, name: str, pattern, rng) -> Field:
    seen = np.asarray(_on_camera(plan, setup, pattern))
    axes = _camera_axes(plan, setup, ("y", "x"))
    if name == "pattern" and plan.dose:
        return Field(_counted(plan, seen, rng), axes, "electrons", name)
    return Field(seen, axes, "", name)


# --- hrtem ---------------------------------------------------------------------------------------


def _hrtem(plan: SimulatePlan, setup: Setup, folder: pathlib.Path):
    wavelength = optics.wavelength_A(plan.energy_keV)
    coefficients = optics.cartesian(plan.aberrations)
    transfer = (
        optics.aperture(setup.angles, plan.semiangle_mrad)
        * jnp.exp(-1j * optics.chi(setup.angles, coefficients, wavelength))
        * optics.focal_envelope(setup.angles, plan.focal_spread_A, wavelength)
        * optics.angular_envelope(setup.angles, plan.angular_spread_mrad, coefficients, wavelength)
    )

    def seen(potential, wave):
        after = _behind(plan, setup, potential, wave)
        return after, jnp.abs(jnp.fft.ifft2(jnp.fft.fft2(after) * transfer)) ** 2

    ((wave, image),) = _means(seen, setup, [jnp.ones(setup.shape, complex)])
    wave, image = np.asarray(wave), np.asarray(_camera(plan, image))
    axes = tuple(
        Axis(n, np.arange(size) * d * 0.1, "nm")
        for n, size, d in zip(("y", "x"), setup.shape, setup.sampling_A, strict=True)
    )
    unit, rng = "electrons" if plan.dose else "", np.random.default_rng(plan.seed)
    return {
        "image": Field(_counted(plan, image, rng), axes, unit, "image"),
        "exit_amplitude": Field(np.abs(wave), axes, "", "exit_amplitude"),
        "exit_phase": Field(np.angle(wave), axes, "rad", "exit_phase"),
    }, []
