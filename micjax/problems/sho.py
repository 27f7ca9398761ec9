"""Resonances at every pixel of a map: band excitation, contact resonance, Q-mapping.

    (real, imaginary) = amplitude e^(i phase) f0^2 / (f0^2 - f^2 + i f0 f / Q) + noise

Each pixel has its own resonance, quality factor, amplitude, phase and noise. One curve is the
problem `resonance`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, drawn_data
from micjax.core.ranges import positive
from micjax.inference.maps.each import each_pixel, one_pixel
from micjax.inference.maps.stage import fit_each_pixel
from micjax.inference.solution import Solution
from micjax.io import read
from micjax.physics.noise import Gaussian
from micjax.physics.probes.oscillator import Oscillator
from micjax.physics.spectra import guesses
from micjax.physics.spectra.scales import under
from micjax.problems.shared.map_conclusion import compare_map, conclude_map
from micjax.problems.shared.map_show import map_figures
from micjax.problems.shared.spectrum_images import in_unit, noise_sd, spectrum_image
from micjax.problems.shared.stress import of_curves

Frequencies = Float[Array, " n"]
Responses = Float[Array, "ny nx n 2"]

KILOHERTZ = {"kHz": 1.0, "Hz": 1e-3, "MHz": 1e3}
DRAWN = ("f0_kHz", "Q", "amplitude", "phase_rad", "peak_amplitude")


def problem(
    ny: int = 12,
    nx: int = 12,
    low_kHz: float = 300.0,
    high_kHz: float = 420.0,
    f0_kHz: float = 360.0,
    Q: float = 100.0,
    amplitude: float = 1.0,
    amplitude_factor: float = 5.0,
    sigma: float = 5.0,
    sigma_factor: float = 3.0,
    pixel_nm: float | Sequence[float] | None = None,
) -> InverseProblem:
    """A resonance of its own, and noise of its own, at every pixel.

    **Arguments:**

    - `ny`, `nx`: pixels.
    - `low_kHz`, `high_kHz`: ends of the band; f0 is anywhere in it.
    - `f0_kHz`: where a fit starts that has no better place.
    - `Q`: quality factor expected, to within a factor of 10.
    - `amplitude`: response to a slow drive expected, to within `amplitude_factor`.
    - `sigma`: rms noise of either channel expected, to within `sigma_factor`.
    - `pixel_nm`: edge of a pixel, or (dy, dx), if it is known.

    **Raises:** `ValueError` when f0 is not within the band, or for numbers that are not positive.
    """
    if not 0 < low_kHz < f0_kHz < high_kHz:
        raise ValueError(f"f0_kHz = {f0_kHz} is not between {low_kHz} and {high_kHz}")
    positive(Q=Q, amplitude=amplitude, sigma=sigma, high_kHz=high_kHz)
    for name, factor in (("amplitude_factor", amplitude_factor), ("sigma_factor", sigma_factor)):
        if not factor > 1.0:
            raise ValueError(f"{name} = {factor}: more than 1 is needed")
    pixel = InverseProblem(
        Oscillator(f0_kHz, Q, amplitude),
        Gaussian(sigma),
        {
            "forward.f0_kHz": dist.Uniform(low_kHz, high_kHz),
            "forward.Q": dist.LogNormal(np.log(Q), np.log(10.0)),
            "forward.amplitude": dist.LogNormal(np.log(amplitude), np.log(amplitude_factor)),
            # one turn, counted from where a fit begins: the phase of a map may wind further
            "forward.phase_rad": dist.Normal(0.0, 2.0 * np.pi),
            "noise.sigma": dist.LogNormal(np.log(sigma), np.log(sigma_factor)),
        },
    )
    return each_pixel(pixel, (ny, nx), pixel_nm, ("frequency", "kHz"))


stress = of_curves(axis=-2)


def example(key, ny: int = 12, nx: int = 12) -> tuple[InverseProblem, Frequencies, Responses]:
    """A contact resonance over two domains of opposite phase, and a stiffer inclusion."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    y, x = np.indices((ny, nx)) / max(ny, nx)
    stiff = np.exp(-((x - 0.6) ** 2 + (y - 0.4) ** 2) / 0.05)
    wall = np.tanh(10.0 * (x - 0.3 - 0.2 * y))
    values = {
        "f0_kHz": 345.0 + 25.0 * stiff + 0.5 * rng.normal(size=(ny, nx)),
        "Q": 110.0 - 40.0 * stiff,
        "amplitude": 0.6 + 0.8 * np.abs(wall),
        "phase_rad": 1.2 * wall,
    }
    truth = problem(ny, nx, pixel_nm=20.0).at({f"forward.pixel.{n}": v for n, v in values.items()})
    band = jnp.linspace(300.0, 420.0, 121)
    drawn = drawn_data(truth, band, jax.random.fold_in(key, 1))
    return truth, band, drawn


def load(
    file, channel: str | None = None, low_kHz: float | None = None, high_kHz: float | None = None
) -> tuple[dict[str, Any], Frequencies, Responses]:
    """Complex responses `[y, x, frequency]`, a line or one of them.

    **Arguments:**

    - `channel`: which array of the file.
    - `low_kHz`, `high_kHz`: the part of the band that is fitted.

    **Raises:** `ValueError` for real values, other shapes, an axis that is no frequency, fewer than
    5 frequencies, one that is not above 0.
    """
    field = read(file, channel)
    if field.data.dtype.kind != "c":
        raise ValueError(f"{field.name}: {field.data.dtype}; complex responses are needed")
    real, imaginary = (
        spectrum_image(dataclasses.replace(field, data=part))
        for part in (field.data.real, field.data.imag)
    )
    band = in_unit(real.axis, KILOHERTZ, real.axis.name or "the last axis")
    low, high = (
        -np.inf if low_kHz is None else low_kHz,
        np.inf if high_kHz is None else high_kHz,
    )
    order = np.argsort(band)
    order = order[(band[order] >= low) & (band[order] <= high)]
    band = band[order]
    if len(band) < 5 or not band[0] > 0:
        raise ValueError(f"{len(band)} frequencies from {low} to {high} kHz: 5 above 0 are needed")
    y = np.stack([real.y[..., order], imaginary.y[..., order]], axis=-1)
    y[~np.isfinite(y).all(axis=-1)] = np.nan  # half a number is none
    guess = guesses.oscillator(band, y)
    noise, step = _noise(y), float(np.median(np.diff(band)))
    seen = np.isfinite(y).any(axis=(-1, -2))
    options = real.options() | {
        "low_kHz": max(float(band[0]) - step, step / 2.0),
        "high_kHz": float(band[-1]) + step,
        "f0_kHz": float(np.median(guess["f0_kHz"][seen])),
        "Q": float(np.median(guess["Q"][seen])),
        "amplitude": float(np.exp(np.median(np.log(guess["amplitude"][seen])))),
        "amplitude_factor": _factor(guess["amplitude"][seen]),
        "sigma": float(np.exp(np.median(np.log(noise[seen])))),
        "sigma_factor": _factor(noise[seen]),
    }
    return options, jnp.asarray(band, float), jnp.asarray(y, float)


def _noise(y: np.ndarray) -> np.ndarray:
    """Of each pixel, from both channels."""
    return np.sqrt(np.mean([noise_sd(y[..., i]) ** 2 for i in range(2)], axis=0))


def _factor(values: np.ndarray) -> float:
    """Within two standard deviations of what the pixels of this map show, at least e."""
    return float(np.exp(max(1.0, 2.0 * np.std(np.log(values)))))


def starts(pixel: InverseProblem, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The largest response of each pixel, its width, size and phase, by names of a pixel."""
    guess = under("forward", guesses.oscillator(x, y)) | {"noise.sigma": _noise(y)}
    return {n: v for n, v in guess.items() if n in pixel.priors}


def stages(
    problem: InverseProblem,
    x: Frequencies,
    y: Any,
    *,
    steps: int = 200,
    neighbours: int = 1,
    smooth: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
) -> list:
    """All resonances at once, each until it has converged.

    **Arguments:**

    - `steps`: of Gauss-Newton, at most.
    - `neighbours`: how often each pixel begins again from its best neighbour.
    - `smooth`: unknowns of which neighbouring pixels are alike, as far as the data show it.
    - `shared`: unknowns that are the same for the `map`, each `row` or each `column`, by name.
    """
    return [
        fit_each_pixel(starts, steps=steps, neighbours=neighbours, smooth=smooth, shared=shared)
    ]


def largest(model: Oscillator) -> dict[str, Array]:
    """The response at resonance."""
    return {"peak_amplitude": model.amplitude * model.Q}


def conclude(solution: Solution, x: Frequencies, y: Any) -> Solution:
    """With the maps of all parameters and of the response at resonance."""
    return conclude_map(solution, derived=largest, first="f0_kHz")


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Against the truth: one resonance for all pixels, the largest responses, the fits."""
    guess = starts(one_pixel(truth)[0], np.asarray(x), np.asarray(y))
    return compare_map(solution, truth, guess, largest)


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Maps with errors, resonances of some pixels, how the fits ended."""
    return map_figures(solution, x, y, DRAWN, "size of the response")
