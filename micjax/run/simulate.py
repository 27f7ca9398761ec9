"""`micjax simulate`: from a structure file to STEM images, diffraction patterns, HRTEM images."""

import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from scipy.spatial import cKDTree

from micjax.core.progress import progress
from micjax.io import Axis, Field
from micjax.io.structures import read_structure
from micjax.physics import optics
from micjax.physics.detectors import annulus, collected, pixelated
from micjax.physics.multislice import (
    band_limit,
    highest_angle_mrad,
    multislice,
    propagate,
    transmission,
)
from micjax.physics.phonons import Thermal, averaged, displaced
from micjax.physics.potentials import Atoms, atoms_of, capacities, potential_VA
from micjax.physics.scattering import table
from micjax.physics.stem import placed, scanned
from micjax.run.names import unknown_name

log = logging.getLogger("micjax")

CLOSEST_A = 0.5  # atoms nearer to each other are a mistake in the file
SPARE = 2.0  # room for atoms that move from slice to slice
KEPT = 0.97  # of a probe has to lie within half of the cell


class SimulatePlan(pydantic.BaseModel):
    """A structure, a microscope, and what is to be computed. Pairs are (y, x), tiles (x, y, z)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    what: Literal["stem", "cbed", "hrtem"]
    structure: str
    energy_keV: pydantic.PositiveFloat = 200.0
    tile: tuple[pydantic.PositiveInt, pydantic.PositiveInt, pydantic.PositiveInt] = (1, 1, 1)
    sampling_A: pydantic.PositiveFloat = 0.05  # at most
    slice_A: pydantic.PositiveFloat = 2.0  # at most
    table: str = "lobato"
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
    patterns: bool = False  # stem: keep every pattern, in patterns.h5
    outer_mrad: pydantic.PositiveFloat | None = None  # of patterns
    dose: pydantic.PositiveFloat | None = None  # electrons a pattern, or an image pixel
    seed: pydantic.NonNegativeInt = 0
    out: str | None = None


def make_simulate_plan(given: Mapping[str, Any]) -> SimulatePlan:
    """**Raises:** `ValueError` that names every key which is unknown or of another kind."""
    try:
        return SimulatePlan.model_validate(dict(given))
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(map(_fault, error.errors()))) from error


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


class Simulated(NamedTuple):
    """Results by name, and what there is to say."""

    fields: dict[str, Field]
    said: list[str]


def simulate(plan: SimulatePlan, folder: pathlib.Path) -> Simulated:
    """**Raises:** `ValueError`, `OSError`, `ImportError` for what cannot be computed."""
    setup = prepare(plan)
    kind = {"stem": _stem, "cbed": _cbed, "hrtem": _hrtem}[plan.what]
    fields, said = kind(plan, setup, folder)
    ny, nx = setup.shape
    return Simulated(
        fields,
        [
            f"{len(setup.atoms.numbers)} atoms, {len(setup.thickness_A)} slices, {ny} x {nx} "
            f"pixels of {setup.sampling_A[0]:.4g} x {setup.sampling_A[1]:.4g} Å, up to "
            f"{setup.highest_mrad:.4g} mrad.",
            *said,
        ],
    )


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
    height = float(cell.box_A[2])
    slices = int(np.ceil(height / plan.slice_A - 1e-9))
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
    return Setup(
        atoms,
        np.asarray(cell.box_A, float),
        shape,
        sampling,
        np.full(nz * slices, height / slices),
        angles,
        band_limit(shape, sampling),
        highest,
    )


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
    n = max(2, int(np.ceil(least - 1e-9)))
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


def _configurations(plan: SimulatePlan, setup: Setup) -> list[Callable[[], Atoms]]:
    """One is damped; frozen ones are made when their turn comes."""
    if not plan.phonons:
        return [lambda: setup.atoms]
    keys = jax.random.split(jax.random.key(plan.seed), plan.phonons)
    return [lambda k=k: displaced(k, setup.atoms) for k in keys]


def _potential(plan: SimulatePlan, setup: Setup) -> Callable[[Atoms], jax.Array]:
    room = capacities(setup.atoms, setup.thickness_A, SPARE if plan.phonons else 1.0)
    return lambda atoms: potential_VA(
        atoms, setup.shape, setup.thickness_A, table=plan.table, capacity=room
    )


# --- stem ----------------------------------------------------------------------------------------


def _stem(plan: SimulatePlan, setup: Setup, folder: pathlib.Path):
    masks = jnp.stack([annulus(setup.angles, *ends) for ends in plan.detectors.values()])
    probe, said = _probe(plan, setup)
    lines = _places(plan, setup)
    dz, potential = float(setup.thickness_A[0]), _potential(plan, setup)
    outer = plan.outer_mrad or 0.999 * setup.highest_mrad

    def detect(patterns):
        seen = collected(patterns, masks)
        return (seen, pixelated(patterns, setup.angles, outer)) if plan.patterns else (seen,)

    make = jax.jit(lambda atoms: transmission(potential(atoms), plan.energy_keV, setup.limit))

    @jax.jit
    def line(t, places):
        return scanned(
            probe,
            places,
            t,
            dz,
            setup.sampling_A,
            plan.energy_keV,
            detect,
            tilt_mrad=plan.tilt_mrad,
            limit=setup.limit,
        )

    configurations = _configurations(plan, setup)
    images = np.zeros((*plan.scan, len(masks)))
    y, x = (Axis(n, v * 0.1, "nm") for n, v in (("y", lines[:, 0, 0]), ("x", lines[0, :, 1])))
    with (
        progress("lines", len(configurations) * len(lines)) as show,
        _Patterns(folder / "patterns.h5", plan.patterns) as kept,
    ):
        for c, atoms in enumerate(configurations):
            t = make(atoms())
            for i, places in enumerate(lines):
                seen, *patterns = line(t, jnp.asarray(places))
                images[i] += np.asarray(seen) / len(configurations)
                for p in patterns:
                    kept.add(i, np.asarray(p) / len(configurations), len(lines))
                show(c * len(lines) + i + 1)
    images = _counted(plan, images)
    unit = "" if plan.dose is None else "electrons"
    fields = {n: Field(images[..., i], (y, x), unit, n) for i, n in enumerate(plan.detectors)}
    if plan.patterns:
        said.append(f"All patterns, up to {outer:.4g} mrad, are in patterns.h5.")
    return fields, said


class _Patterns:
    """Patterns line by line in a file: a scan need not fit into memory."""

    def __init__(self, path: pathlib.Path, wanted: bool):
        self._file = h5py.File(path, "w") if wanted else None

    def add(self, line: int, patterns: np.ndarray, lines: int) -> None:
        """Adds to what is there of this line."""
        if "patterns" not in self._file:
            shape = (lines, *patterns.shape)
            self._file.create_dataset("patterns", shape, "f4", chunks=(1, *patterns.shape))
        self._file["patterns"][line] += patterns.astype(np.float32)
        self._file.flush()

    def __enter__(self) -> "_Patterns":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()


def _places(plan: SimulatePlan, setup: Setup) -> np.ndarray:
    """(y, x) of each place, `[ny, nx, 2]`, over one cell if nothing else is said."""
    size = plan.scan_size_A or (setup.cell_A[1], setup.cell_A[0])
    y, x = (np.arange(n) * s / n for n, s in zip(plan.scan, size, strict=True))
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)


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


def _counted(plan: SimulatePlan, fractions: np.ndarray) -> np.ndarray:
    """Electrons, with their noise, if there is a dose."""
    if plan.dose is None:
        return fractions
    rng = np.random.default_rng(plan.seed)
    return rng.poisson(plan.dose * np.maximum(fractions, 0.0)).astype(float)


# --- cbed ----------------------------------------------------------------------------------------


def _cbed(plan: SimulatePlan, setup: Setup, folder: pathlib.Path):
    probe, said = _probe(plan, setup)
    places = _places(plan, setup).reshape(-1, 2) if plan.averaged else [plan.position_A]
    dz, potential = float(setup.thickness_A[0]), _potential(plan, setup)

    make = jax.jit(lambda atoms: transmission(potential(atoms), plan.energy_keV, setup.limit))

    @jax.jit
    def through(t, place):
        return propagate(
            placed(probe, place[None], setup.sampling_A)[0],
            t,
            dz,
            setup.sampling_A,
            plan.energy_keV,
            tilt_mrad=plan.tilt_mrad,
            limit=setup.limit,
        )

    configurations = _configurations(plan, setup)
    stacks = [make(atoms()) for atoms in configurations]
    total = elastic = 0.0
    with progress("probes", len(places)) as show:
        for i, place in enumerate(places):
            one = averaged(lambda t, p=place: through(t, jnp.asarray(p)), stacks)
            total, elastic = total + one.total / len(places), elastic + one.elastic / len(places)
            show(i + 1)
    return _patterns_of(plan, setup, Thermal(total, elastic)), said


def _patterns_of(plan: SimulatePlan, setup: Setup, found: Thermal) -> dict[str, Field]:
    outer = plan.outer_mrad or 0.999 * setup.highest_mrad
    shown = {"pattern": found.total}
    if plan.phonons > 1:
        shown |= {"elastic": found.elastic, "thermal_diffuse": found.diffuse}
    fields = {}
    for name, values in shown.items():
        values = np.asarray(pixelated(values, setup.angles, outer))
        axes = tuple(
            Axis(n, (np.arange(size) - size // 2) * float(abs(a.ravel()[1])), "mrad")
            for n, size, a in zip(("y", "x"), values.shape, setup.angles, strict=True)
        )
        counted = _counted(plan, values) if name == "pattern" else values
        unit = "electrons" if plan.dose and name == "pattern" else ""
        fields[name] = Field(counted, axes, unit, name)
    return fields


# --- hrtem ---------------------------------------------------------------------------------------


def _hrtem(plan: SimulatePlan, setup: Setup, folder: pathlib.Path):
    dz, potential = float(setup.thickness_A[0]), _potential(plan, setup)
    wavelength = optics.wavelength_A(plan.energy_keV)
    coefficients = optics.cartesian(plan.aberrations)
    transfer = (
        optics.aperture(setup.angles, plan.semiangle_mrad)
        * jnp.exp(-1j * optics.chi(setup.angles, coefficients, wavelength))
        * optics.focal_envelope(setup.angles, plan.focal_spread_A, wavelength)
        * optics.angular_envelope(setup.angles, plan.angular_spread_mrad, coefficients, wavelength)
    )

    @jax.jit
    def seen(atoms):
        wave = multislice(
            jnp.ones(setup.shape, complex),
            potential(atoms),
            dz,
            setup.sampling_A,
            plan.energy_keV,
            tilt_mrad=plan.tilt_mrad,
        )
        return wave, jnp.abs(jnp.fft.ifft2(jnp.fft.fft2(wave) * transfer)) ** 2

    configurations = _configurations(plan, setup)
    wave, image = 0.0, 0.0
    with progress("configurations", len(configurations)) as show:
        for i, atoms in enumerate(configurations):
            one_wave, one_image = seen(atoms())
            wave, image = wave + one_wave, image + one_image
            show(i + 1)
    wave, image = (np.asarray(v) / len(configurations) for v in (wave, image))
    axes = tuple(
        Axis(n, np.arange(size) * d * 0.1, "nm")
        for n, size, d in zip(("y", "x"), setup.shape, setup.sampling_A, strict=True)
    )
    unit = "electrons" if plan.dose else ""
    return {
        "image": Field(_counted(plan, image), axes, unit, "image"),
        "exit_amplitude": Field(np.abs(wave), axes, "", "exit_amplitude"),
        "exit_phase": Field(np.angle(wave), axes, "rad", "exit_phase"),
    }, []
