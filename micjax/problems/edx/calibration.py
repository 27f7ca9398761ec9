"""The detector of X-ray spectra, from the sum of all of them."""

import logging
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float

from micjax.core.problem import InverseProblem
from micjax.inference.solve import fit
from micjax.inference.solvers.gauss_newton import FisherScoring
from micjax.physics.noise import Poisson
from micjax.physics.spectra.atomic import families_near, x_ray_lines
from micjax.physics.spectra.x_ray import XRaySpectrum, detector_fwhm_keV

log = logging.getLogger("micjax")

LARGE = 0.01  # of the largest peak
SHOULDER = 0.3  # of what is predicted at that place
STRANGE = 10.0  # standard deviations of a peak in the sum of all spectra
MOST_STRANGERS = 3
NEAR_KEV = 0.05
STRONG = 0.05  # of the photons of a family
MOST_OFFSET_KEV, MOST_GAIN_ERROR = 0.02, 3e-3  # of the calibration of a file


def calibration(
    energy_keV: np.ndarray, total: np.ndarray, families: Sequence[str], beam_keV: float
) -> dict[str, float]:
    """Offset, gain, electronic noise of the detector and cutoff of its window, from one spectrum
    with many counts: within 20 eV and 0.3 %. A peak that no family explains is told, and does not
    count: lines of others would move to it."""
    seen, told = np.ones(len(energy_keV), bool), []
    while True:
        out, predicted = _calibrated(energy_keV, total, seen, families, beam_keV)
        width = np.asarray(detector_fwhm_keV(jnp.asarray(energy_keV), out["noise_keV"]))
        at = _stranger(energy_keV, total, predicted, width, seen)
        if at is None or len(told) == MOST_STRANGERS:
            break
        told.append(at)
        theirs = _strong_lines(families_near(float(energy_keV[at]), NEAR_KEV)[:1])
        for line in (energy_keV[at], *theirs):
            seen &= np.abs(energy_keV - line) > 1.5 * width
    log.info(
        "detector: offset %.1f eV, gain %+.3f %%, %.0f eV wide at Mn K alpha (sum of all spectra)",
        1e3 * out["offset_keV"],
        100.0 * out["gain_error"],
        1e3 * float(detector_fwhm_keV(5.895, out["noise_keV"])),
    )
    for at in told:
        names = families_near(float(energy_keV[at]), NEAR_KEV)[:5]
        log.warning(
            "the elements do not explain a peak at %.3f keV%s",
            energy_keV[at],
            f": {', '.join(names)} would be there" if names else "",
        )
    for name, most in (("offset_keV", MOST_OFFSET_KEV), ("gain_error", MOST_GAIN_ERROR)):
        if abs(out[name]) > 0.95 * most:
            log.warning(
                "%s = %.3g of the detector is the most that is looked for: do the elements fit?",
                name,
                out[name],
            )
    return out


def _strong_lines(families: Sequence[str]) -> Float[np.ndarray, " lines"]:
    """Their energies in keV."""
    every = ((n.partition("_")[2], line) for n in families for line in x_ray_lines(n.split("_")[0]))
    return np.array(
        [line.energy_keV for kind, line in every if line.family == kind and line.share > STRONG]
    )


def _calibrated(
    energy_keV: np.ndarray,
    total: np.ndarray,
    seen: np.ndarray,
    families: Sequence[str],
    beam_keV: float,
) -> tuple[dict[str, float], np.ndarray]:
    """The best detector for these channels, and what it has in all of them."""
    counts = max(float(total[seen].sum()), 1.0)
    spectrum = XRaySpectrum.of(families, beam_keV)
    start = np.full(len(families) + 1, counts / (len(families) + 1))
    priors = {
        "forward.counts": dist.HalfNormal(counts).expand((len(families),)).to_event(1),
        "forward.background_counts": dist.HalfNormal(counts),
        "forward.offset_keV": dist.Uniform(-MOST_OFFSET_KEV, MOST_OFFSET_KEV),
        "forward.gain_error": dist.Uniform(-MOST_GAIN_ERROR, MOST_GAIN_ERROR),
        "forward.noise_keV": dist.LogNormal(np.log(0.051), 0.5),
        "forward.cutoff_keV": dist.LogNormal(np.log(0.3), 1.0),
    }
    problem = InverseProblem(spectrum, Poisson(1.0), priors).at(
        {"forward.counts": start[:-1], "forward.background_counts": start[-1]}
    )
    x, y = jnp.asarray(energy_keV[seen], float), jnp.asarray(total[seen], float)
    best = fit(problem, x, y, FisherScoring(), steps=200, chunk=50, tolerance=1e-2).problem
    names = ("offset_keV", "gain_error", "noise_keV", "cutoff_keV")
    predicted = np.asarray(best.forward(jnp.asarray(energy_keV, float)), float)
    return {n: float(getattr(best.forward, n)) for n in names}, predicted


def _stranger(energy_keV, total, predicted, fwhm_keV, seen: np.ndarray) -> int | None:
    """The channel of the largest peak that the families do not explain."""
    kernel = np.exp(-0.5 * ((energy_keV - energy_keV[:, None]) * 2.355 / fwhm_keV[:, None]) ** 2)
    excess = kernel @ (total - predicted)
    score = excess / np.sqrt(kernel**2 @ np.maximum(predicted, 1.0))
    # lines are not quite Gaussian: what is small beside them may be their own
    large = excess > np.maximum(LARGE * np.max(kernel @ total), SHOULDER * (kernel @ predicted))
    strange = seen & large & (score > STRANGE)
    return int(np.argmax(np.where(strange, excess, 0.0))) if strange.any() else None
