"""Spectrum images as mixtures of a few end members: X-ray maps, energy loss, profiles of 4D-STEM.

    y_pf ~ Poisson(sum_k abundance_pk spectrum_kf)    or    Normal(the same, sigma)

No spectrum is known beforehand; abundances and spectra are not below zero, and each spectrum adds
up to one, so that abundances are in the counts of a pixel.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem, drawn_data
from micjax.core.ranges import not_negative, positive
from micjax.io import FieldAxis
from micjax.physics.noise import Gaussian, Poisson
from micjax.problems.shared.stress import stress as stress
from micjax.problems.unmixing.conclusion import conclude as conclude
from micjax.problems.unmixing.data import load as load
from micjax.problems.unmixing.intervals import intervals as intervals
from micjax.problems.unmixing.known import known_spectra
from micjax.problems.unmixing.model import MixedSpectra
from micjax.problems.unmixing.show import compare as compare
from micjax.problems.unmixing.show import figures as figures
from micjax.problems.unmixing.stages import stages as stages

NOISES = ("poisson", "normal")


def problem(
    ny: int = 48,
    nx: int = 48,
    channels: int = 240,
    components: int = 0,
    most_components: int = 6,
    noise: str = "poisson",
    sigma: float = 1.0,
    level: float = 1.0,
    pixel_nm: float | None = 10.0,
    signal_start: float = 0.5,
    signal_step: float = 0.05,
    signal_unit: str = "keV",
    signal_name: str = "energy",
    known: str | None = None,
) -> InverseProblem:
    """Spectra of a grid of pixels, all with the same few end members.

    **Arguments:**

    - `ny`, `nx`: pixels.
    - `channels`: of a spectrum.
    - `components`: end members; 0: as many as the data show.
    - `most_components`: how many there are at most, if it is not known.
    - `noise`: `poisson` for counts, `normal` for values with one standard deviation.
    - `sigma`: that standard deviation, about; it is an unknown.
    - `level`: about the mean of a value.
    - `pixel_nm`: edge of a pixel, if it is known.
    - `signal_start`, `signal_step`, `signal_unit`, `signal_name`: of the channels.
    - `known`: a file with the spectra of end members that are known, see `known_spectra`.

    **Raises:** `ValueError` for another noise, numbers that are not positive, more end members than
    pixels or channels, fewer than are known, and known spectra that do not cover the channels.
    """
    not_negative(components=components)
    positive(most_components=most_components, sigma=sigma, level=level, signal_step=signal_step)
    if noise not in NOISES:
        raise ValueError(f"noise = {noise!r}: one of {', '.join(NOISES)} is needed")
    most = components or min(most_components, ny * nx, channels)
    if most > min(ny * nx, channels):
        raise ValueError(
            f"{components} end members of {ny * nx} pixels with {channels} channels: at most "
            f"{min(ny * nx, channels)}"
        )
    axis = signal_start + signal_step * np.arange(channels)
    given = (
        np.zeros((0, channels))
        if known is None
        else known_spectra(known, FieldAxis(signal_name, axis, signal_unit))
    )
    if len(given) > most:
        raise ValueError(f"{known}: {len(given)} known end members, and room for {most}")
    brightness = level * channels
    forward = MixedSpectra(
        np.full((ny * nx, most), brightness / most),
        np.full((most, channels), 1.0 / channels),
        given,
        (ny, nx),
        components,
        pixel_nm,
        signal_start,
        signal_step,
        signal_unit,
        signal_name,
    )
    priors = {
        "forward.abundance": dist.HalfNormal(3.0 * brightness),
        "forward.spectrum": dist.HalfNormal(1.0),
    }
    if noise == "poisson":
        return InverseProblem(forward, Poisson(1.0), priors)
    priors["noise.sigma"] = dist.LogNormal(np.log(sigma), 1.0)
    return InverseProblem(forward, Gaussian(sigma), priors)


def example(
    key,
    ny: int = 48,
    nx: int = 48,
    channels: int = 240,
    components: int = 3,
    counts_per_pixel: float = 200.0,
) -> tuple[InverseProblem, Int[Array, "n"], Float[Array, "n f"]]:
    """An X-ray map of phases that lie in patches of a matrix, a few counts a pixel.

    Each spectrum has characteristic lines, two of them shared with the next phase, on a background
    as of Kramers (1923).
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    truth = problem(ny, nx, channels, components, level=counts_per_pixel / channels)
    energy = truth.forward.signal
    lines = rng.uniform(0.8, 0.85 * energy[-1], (components + 1, 2))
    strengths = rng.uniform(0.4, 1.0, (components, 4))
    width = 0.045 * np.sqrt(1.0 + energy / 3.0)
    spectra = []
    for k in range(components):
        own = np.concatenate([lines[k], lines[k + 1]])
        peaks = np.exp(-0.5 * ((energy - own[:, None]) / width) ** 2)
        background = 0.12 * (energy[-1] + 0.1 - energy) / energy * (1.0 - np.exp(-energy))
        spectra.append(strengths[k] @ peaks + background)
    y, x = np.indices((ny, nx)) / max(ny, nx)
    shares = []
    for _ in range(components - 1):
        cy, cx = rng.uniform(0.15, 0.85, 2)
        distance = np.hypot(y - cy, x - cx)
        shares.append(1.0 / (1.0 + np.exp((distance - rng.uniform(0.15, 0.3)) / 0.03)))
    matrix = np.prod([1.0 - share for share in shares], axis=0)
    abundance = np.stack([matrix, *shares], axis=-1).reshape(ny * nx, components)
    abundance *= counts_per_pixel / abundance.sum(axis=1, keepdims=True)
    spectrum = np.array(spectra)
    spectrum /= spectrum.sum(axis=1, keepdims=True)
    truth = truth.at({"forward.abundance": abundance + 1e-3, "forward.spectrum": spectrum + 1e-9})
    pixel = jnp.arange(ny * nx)
    drawn = drawn_data(truth, pixel, jax.random.fold_in(key, 1))
    return truth, pixel, jnp.asarray(drawn, float)
