"""`micjax simulate`: from a structure file to STEM images, diffraction patterns, HRTEM images."""

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from micjax.core import devices
from micjax.io import Field, FieldAxis, create_nexus
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import collected, diffraction, source_blurred
from micjax.physics.electrons.multislice import multislice, transmission
from micjax.physics.electrons.phonons import Thermal
from micjax.physics.electrons.stem import GPU_WAVES, placed, scanned
from micjax.run.jobs.simulate.camera import (
    angles_of,
    camera,
    camera_axes,
    counted,
    on_camera,
    outer_mrad,
    place_axes,
    places,
    probe_of,
)
from micjax.run.jobs.simulate.setup import Setup, scan_size_A
from micjax.run.jobs.simulate.setup import prepare as prepare
from micjax.run.jobs.simulate.sums import Kept, Sums, summed
from micjax.run.plans.simulate import SimulatePlan


class SimulationResult(NamedTuple):
    """Results by name, and what there is to say."""

    fields: dict[str, Field]
    said: list[str]


def simulate(
    plan: SimulatePlan,
    folder: pathlib.Path,
    *,
    setup: Setup | None = None,
    resume: bool = False,
) -> SimulationResult:
    """**Arguments:**

    - `folder`: for what is kept while it goes on, and for patterns.
    - `setup`: of `prepare`, where there is one already.
    - `resume`: to go on, bit for bit, with what is kept there of the same plan.

    **Raises:** `ValueError`, `OSError`, `ImportError` for what cannot be computed.
    """
    setup, kept = prepare(plan) if setup is None else setup, Kept(folder, resume)
    kind = {"stem": _stem, "cbed": _cbed, "hrtem": _hrtem}[plan.what]
    fields, statements = kind(plan, setup, kept)
    (ny, nx), (dy, dx) = setup.shape, setup.sampling_A
    first = (
        f"{len(setup.atoms.numbers)} atoms, {len(setup.thickness_A)} slices, {ny} x {nx} pixels of "
        f"{dy:.4g} x {dx:.4g} Å, up to {setup.highest_mrad:.4g} mrad."
    )
    if setup.mesh is not None:
        statements = [*statements, f"Devices: {setup.mesh.size}."]
    return SimulationResult(fields, [first, *statements])


def _behind(plan: SimulatePlan, setup: Setup, potential, waves):
    grid = (setup.thickness_A, setup.sampling_A)
    return multislice(waves, potential, *grid, plan.energy_keV, tilt_mrad=plan.tilt_mrad)


# --- stem ----------------------------------------------------------------------------------------


def _stem(plan: SimulatePlan, setup: Setup, kept: Kept):
    """Line by line for one configuration after the other; a dose is counted at the end."""
    masks = jnp.asarray(setup.masks)
    probe, statements = probe_of(plan, setup)
    lines, moments = places(plan, setup), len(setup.moments)
    together = 1 if setup.mesh is None else setup.mesh.size  # a line for each device
    groups = [lines[i : i + together] for i in range(0, len(lines), together)]
    make = jax.jit(lambda key: transmission(setup.potential(key), plan.energy_keV, setup.limit))
    scan = _scan(plan, setup, masks, moments)
    through: dict[int, jax.Array] = {}  # the transmission functions of the last configuration

    def at(moment: int) -> jax.Array:
        if moment not in through:
            t = make(setup.moments[moment])
            if setup.mesh is not None:  # once to each device, not with each line
                t = jax.device_put(t, NamedSharding(setup.mesh, PartitionSpec()))
            through.clear()
            through[moment] = t
        return through[moment]

    def add(step: int, sums: Sums) -> Sums:
        if step >= moments * len(groups):
            line = step - moments * len(groups)
            rng = np.random.default_rng([plan.seed, line])
            return sums | {"lines": counted(plan, patterns[line : line + 1], rng)}
        moment, group = divmod(step, len(groups))
        seen, *some = scan(jnp.asarray(groups[group], float), probe, at(moment))
        first, after = group * together, group * together + len(groups[group])
        sums["images"][first:after] += np.asarray(seen)
        if not plan.patterns:
            return sums
        new = np.asarray(some[0], np.float32).reshape(-1, *patterns.shape[1:])
        return sums | {"lines": patterns[first:after] + new}

    def commit(step: int, sums: Sums) -> None:
        behind = step - moments * len(groups)
        first = behind if behind >= 0 else step % len(groups) * together
        patterns[first : first + len(sums["lines"])] = sums["lines"]
        patterns.file.flush()

    counting = len(lines) if plan.patterns and plan.dose else 0
    axes, unit = place_axes(plan, setup), "" if plan.dose is None else "electrons"
    of_file = (*axes, *camera_axes(plan, setup, ("ky", "kx")))
    file = _patterns(kept, of_file) if plan.patterns else contextlib.nullcontext()
    sums = {"images": np.zeros((*lines.shape[:2], len(masks)))}
    with file as patterns:
        sums = summed(
            kept,
            "lines",
            moments * len(groups) + counting,
            add,
            sums,
            commit if plan.patterns else None,
        )
        if counting:
            patterns.attrs["units"] = unit  # until now they were fractions of the beam
    images = np.moveaxis(sums["images"], -1, 0)
    if plan.source_fwhm_A:
        size = scan_size_A(plan, setup.cell_A)
        step = (size[0] / plan.scan[0], size[1] / plan.scan[1])
        images = np.asarray(source_blurred(jnp.asarray(images), step, plan.source_fwhm_A))
    images = counted(plan, images, np.random.default_rng(plan.seed))
    images = images.reshape(-1, *(a.values.size for a in axes))
    fields = {
        n: Field(image, axes, unit, n) for n, image in zip(plan.detectors, images, strict=True)
    }
    if plan.places_A is not None:
        for name, along in zip(("place_y", "place_x"), lines[:, 0].T, strict=True):
            fields[name] = Field(0.1 * along, axes, "nm", name)
    if plan.patterns:
        outer = outer_mrad(plan, setup)
        of = ", of a source without a size" if plan.source_fwhm_A else ""
        statements.append(f"All patterns, up to {outer:.4g} mrad{of}, are in patterns.nxs.")
    return fields, statements


def _scan(plan: SimulatePlan, setup: Setup, masks, moments: int) -> Callable:
    """Some lines through one configuration: its share of the images, and of the patterns."""

    def detect(patterns):
        seen = collected(patterns, masks)
        return (seen, on_camera(plan, setup, patterns)) if plan.patterns else (seen,)

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
        return [a.reshape(*places.shape[:2], *a.shape[1:]) / moments for a in seen]

    return scan


@contextlib.contextmanager
def _patterns(kept: Kept, axes: Sequence[FieldAxis]) -> Iterator[h5py.Dataset]:
    """The data set of all patterns: a new one, or that of the run which goes on.

    **Raises:** `ValueError` where that is not there any more.
    """
    path = kept.path.parents[1] / "patterns.nxs"
    if not kept.begun:
        with create_nexus(path, "patterns", axes) as patterns:
            yield patterns
        return
    if not path.exists():
        raise ValueError(f"{path} of the run is not there: it cannot go on")
    with h5py.File(path, "r+") as file:
        yield file["entry/patterns/data"]


# --- cbed and hrtem ------------------------------------------------------------------------------


def _averaged(
    setup: Setup, kept: Kept, function: Callable, given: Sequence[jax.Array], fold, sums: Sums
) -> Sums:
    """For each of what is given two means, function(potential, given) over all configurations;
    `fold(sums, first, second)` are the sums with them."""
    mesh, moments = setup.mesh if len(setup.moments) > 1 else None, len(setup.moments)
    together = 1 if mesh is None else mesh.size
    groups = [setup.moments[i : i + together] for i in range(0, moments, together)]

    def at(key, argument):
        return function(setup.potential(key), argument)

    @jax.jit
    def of(keys, argument):
        if mesh is None:
            return at(keys[0], argument)
        means = devices.mean(lambda key: at(key, argument), keys, mesh)
        return jax.tree.map(lambda m: m * len(keys), means)

    def add(step: int, sums: Sums) -> Sums:
        which, group = divmod(step, len(groups))
        both = of(groups[group], given[which])
        if group:
            both = (sums["first"] + both[0], sums["second"] + both[1])
        sums = sums | {"first": both[0], "second": both[1]}
        if group + 1 < len(groups):
            return sums
        return sums | fold(sums, *(b / moments for b in both))

    return summed(kept, "configurations", len(given) * len(groups), add, sums)


def _cbed(plan: SimulatePlan, setup: Setup, kept: Kept):
    probe, statements = probe_of(plan, setup)
    several = plan.averaged or plan.places_A is not None
    at = places(plan, setup).reshape(-1, 2) if several else np.array([plan.position_A])
    at_once = max(1, GPU_WAVES // math.prod(setup.shape))

    def both(potential, places):
        after = _behind(plan, setup, potential, placed(probe, places, setup.sampling_A))
        return after, diffraction(after)

    def fold(sums, wave, pattern):
        return {
            "total": sums["total"] + pattern.sum(0) / len(at),
            "of_mean_wave": sums["of_mean_wave"] + diffraction(wave).sum(0) / len(at),
        }

    some = [jnp.asarray(at[i : i + at_once], float) for i in range(0, len(at), at_once)]
    zeros = np.zeros(setup.shape, jnp.result_type(float))
    sums = {"total": zeros, "of_mean_wave": zeros}
    sums = _averaged(setup, kept, both, some, fold, sums)
    thermal = Thermal(*(jnp.asarray(sums[n]) for n in ("total", "of_mean_wave")), plan.phonons)
    shown = {"pattern": thermal.total}
    if plan.phonons > 1:
        shown |= {"elastic": thermal.elastic, "thermal_diffuse": thermal.diffuse}
        statements.append(
            f"Elastic and thermal diffuse are without the bias of {plan.phonons} configurations "
            f"(1/{plan.phonons} of the diffuse part in the mean wave), and may be below 0 by noise."
        )
    rng = np.random.default_rng(plan.seed)
    return {name: _pattern(plan, setup, name, of, rng) for name, of in shown.items()}, statements


def _pattern(plan: SimulatePlan, setup: Setup, name: str, pattern, rng) -> Field:
    seen = np.asarray(on_camera(plan, setup, pattern))
    axes = camera_axes(plan, setup, ("y", "x"))
    if name == "pattern" and plan.dose:
        return Field(counted(plan, seen, rng), axes, "electrons", name)
    return Field(seen, axes, "", name)


def _transfer(plan: SimulatePlan, setup: Setup) -> np.ndarray:
    """What the objective lens does to the spectrum of a wave, in double precision."""
    with jax.enable_x64(True):
        angles, wavelength = angles_of(plan, setup)
        coefficients = optics.cartesian(plan.aberrations)
        return np.asarray(
            optics.sharp_aperture(angles, plan.semiangle_mrad)
            * jnp.exp(-1j * optics.chi(angles, coefficients, wavelength))
            * optics.focal_envelope(angles, plan.focal_spread_A, wavelength)
            * optics.angular_envelope(angles, plan.angular_spread_mrad, coefficients, wavelength)
        )


def _hrtem(plan: SimulatePlan, setup: Setup, kept: Kept):
    transfer = jnp.asarray(_transfer(plan, setup), complex)

    def seen(potential, wave):
        after = _behind(plan, setup, potential, wave)
        return after, jnp.abs(jnp.fft.ifft2(jnp.fft.fft2(after) * transfer)) ** 2

    sums: dict[str, Any] = {}
    plane = jnp.ones(setup.shape, complex)
    sums = _averaged(
        setup, kept, seen, [plane], lambda _, wave, image: {"wave": wave, "image": image}, sums
    )
    wave, image = np.asarray(sums["wave"]), np.asarray(camera(plan, jnp.asarray(sums["image"])))
    axes = tuple(
        FieldAxis(n, np.arange(size) * d * 0.1, "nm")
        for n, size, d in zip(("y", "x"), setup.shape, setup.sampling_A, strict=True)
    )
    unit, rng = "electrons" if plan.dose else "", np.random.default_rng(plan.seed)
    return {
        "image": Field(counted(plan, image, rng), axes, unit, "image"),
        "exit_amplitude": Field(np.abs(wave), axes, "", "exit_amplitude"),
        "exit_phase": Field(np.angle(wave), axes, "rad", "exit_phase"),
    }, []
