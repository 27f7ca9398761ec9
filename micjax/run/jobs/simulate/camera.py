"""What the camera and the probe of a simulation are."""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from micjax.io import FieldAxis
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import beam_stop, blurred, gaussian_mtf, pixelated
from micjax.run.jobs.simulate.setup import Setup, scan_size_A
from micjax.run.plans.simulate import SimulatePlan

log = logging.getLogger("micjax")

KEPT = 0.97  # of a probe has to lie within half of the cell


def places(plan: SimulatePlan, setup: Setup) -> np.ndarray:
    """(y, x) of each place, `[ny, nx, 2]`; `[n, 1, 2]` of a list."""
    if plan.places_A is not None:
        return np.asarray(plan.places_A, float)[:, None]
    size = scan_size_A(plan, setup.cell_A)
    y, x = (np.arange(n) * s / n for n, s in zip(plan.scan, size, strict=True))
    y, x = np.meshgrid(y, x, indexing="ij")
    if plan.scan_rotation_deg:
        c, s = (f(np.deg2rad(plan.scan_rotation_deg)) for f in (np.cos, np.sin))
        y, x = s * x + c * y, c * x - s * y
    return np.stack([y, x], axis=-1) + np.asarray(plan.scan_origin_A)


def place_axes(plan: SimulatePlan, setup: Setup) -> tuple[FieldAxis, ...]:
    """Along the lines of the scan and across; of a list the number of each place."""
    if plan.places_A is not None:
        return (FieldAxis("place", np.arange(len(plan.places_A)), ""),)
    size, turned = scan_size_A(plan, setup.cell_A), plan.scan_rotation_deg != 0.0
    first = (0.0, 0.0) if turned else plan.scan_origin_A
    return tuple(
        FieldAxis(name, 0.1 * (o + np.arange(n) * s / n), "nm")
        for name, o, n, s in zip(("y", "x"), first, plan.scan, size, strict=True)
    )


def outer_mrad(plan: SimulatePlan, setup: Setup) -> float:
    return plan.outer_mrad or 0.999 * setup.highest_mrad


def on_camera(plan: SimulatePlan, setup: Setup, patterns):
    """What comes past the beam stop, as the camera blurs it, up to an angle."""
    if plan.beam_stop_mrad is not None:
        patterns = patterns * beam_stop(setup.angles, *plan.beam_stop_mrad)
    return pixelated(camera(plan, patterns), setup.angles, outer_mrad(plan, setup))


def camera_axes(plan: SimulatePlan, setup: Setup, names: tuple[str, str]) -> tuple[FieldAxis, ...]:
    shape = jax.eval_shape(lambda p: on_camera(plan, setup, p), jnp.zeros(setup.shape)).shape
    return tuple(
        FieldAxis(n, (np.arange(size) - size // 2) * float(abs(a.ravel()[1])), "mrad")
        for n, size, a in zip(names, shape, setup.angles, strict=True)
    )


def camera(plan: SimulatePlan, images):
    return images if plan.mtf == 1.0 else blurred(images, gaussian_mtf(images.shape[-2:], plan.mtf))


def angles_of(plan: SimulatePlan, setup: Setup) -> tuple[optics.Angles, float]:
    """The angles of the pixels, in the precision that is asked for here, and the wavelength."""
    wavelength = optics.wavelength_A(plan.energy_keV)
    return optics.angles_mrad(setup.shape, np.asarray(setup.sampling_A), wavelength), wavelength


def probe_of(plan: SimulatePlan, setup: Setup) -> tuple[jax.Array, list[str]]:
    with jax.enable_x64(True):  # of many turns of phase
        angles, wavelength = angles_of(plan, setup)
        coefficients = optics.cartesian(plan.aberrations)
        wave = np.asarray(optics.probe(angles, plan.semiangle_mrad, coefficients, wavelength))
    probe = jnp.asarray(wave, complex)
    within = [
        np.abs(np.fft.fftfreq(n)) < 0.25 for n in setup.shape
    ]  # half of the cell around the probe
    intensity = np.abs(np.asarray(probe)) ** 2
    share = float(intensity[np.ix_(*within)].sum() / intensity.sum())
    if share >= KEPT:
        return probe, []
    warning = (
        f"Only {100.0 * share:.1f} % of the probe lies within half of the cell: it meets its "
        "neighbours. More tiles along x and y would keep them apart."
    )
    log.warning(warning)
    return probe, [warning]


def counted(plan: SimulatePlan, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Electrons, with their noise, if there is a dose."""
    if plan.dose is None:
        return fractions
    return rng.poisson(plan.dose * np.maximum(fractions, 0.0)).astype(float)
