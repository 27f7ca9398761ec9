"""Ferroelectric hysteresis loops at every pixel of a map: switching spectroscopy.

    y(V) = offset + switchable * share switched(V) + slope V + noise

The share that has switched follows one error function on the branch of rising bias and another on
that of falling bias, each with a coercive bias and a width on either side (Jesse et al. 2009).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
from micjax.physics.noise import Gaussian, StudentT
from micjax.physics.spectra import guesses
from micjax.physics.spectra.loops import FerroelectricLoop
from micjax.physics.spectra.scales import under
from micjax.problems.shared.map_conclusion import compare_map, conclude_map
from micjax.problems.shared.map_show import map_figures
from micjax.problems.shared.spectrum_images import in_unit, noise_sd, spectrum_image
from micjax.problems.shared.stress import of_curves

Sweep = Float[Array, " n"]
Loops = Float[Array, "ny nx n"]

NOISES = ("normal", "student")
VOLTS = {"V": 1.0, "mV": 1e-3, "kV": 1e3}
DRAWN = (
    "coercive_falling_V",
    "coercive_rising_V",
    "imprint_V",
    "switchable",
    "work",
    "remanent_falling",
    "remanent_rising",
    "nucleation_rising_V",
)


def problem(
    ny: int = 12,
    nx: int = 12,
    low_V: float = -8.0,
    high_V: float = 8.0,
    step_V: float = 0.5,
    level: float = 1.0,
    sigma: float = 0.05,
    sigma_factor: float = 3.0,
    noise: Literal["normal", "student"] = "normal",
    pixel_nm: float | Sequence[float] | None = None,
) -> InverseProblem:
    """A loop of its own, and noise of its own, at every pixel.

    **Arguments:**

    - `ny`, `nx`: pixels.
    - `low_V`, `high_V`: ends of the sweep.
    - `step_V`: of the bias.
    - `level`: about the largest response.
    - `sigma`: rms noise expected, in units of the data, to within `sigma_factor`.
    - `noise`: `normal`, or `student` where single responses are far off: the tails of Student's t
        with 3 degrees of freedom.
    - `pixel_nm`: edge of a pixel, or (dy, dx), if it is known.

    **Raises:** `ValueError` for another noise, a sweep without extent, numbers that are not
    positive.
    """
    positive(step_V=step_V, level=level, sigma=sigma)
    if not high_V - low_V >= step_V:
        raise ValueError(f"low_V = {low_V}, high_V = {high_V}: no sweep in steps of {step_V} V")
    if not sigma_factor > 1.0:
        raise ValueError(f"sigma_factor = {sigma_factor}: more than 1 is needed")
    if noise not in NOISES:
        raise ValueError(f"noise = {noise!r}: one of {', '.join(NOISES)} is needed")
    sweep = np.arange(low_V, high_V + step_V / 2.0, step_V)
    middle, width = (low_V + high_V) / 2.0, (high_V - low_V) / 8.0
    loop = FerroelectricLoop(0.0, level, middle - width, middle + width, 0.0, *[width / 2.0] * 4)
    priors = under("forward", FerroelectricLoop.priors(sweep, np.full(sweep.shape, level)))
    priors["noise.sigma"] = dist.LogNormal(np.log(sigma), np.log(sigma_factor))
    law = Gaussian(sigma) if noise == "normal" else StudentT(sigma, 3.0)
    return each_pixel(InverseProblem(loop, law, priors), (ny, nx), pixel_nm, ("bias", "V"))


stress = of_curves()


def example(key, ny: int = 12, nx: int = 12) -> tuple[InverseProblem, Sweep, Loops]:
    """Two domains, between which coercive biases and the sign of the loop change."""
    up = jnp.linspace(0.0, 8.0, 17)
    bias = jnp.concatenate([up, up[-2::-1], -up[1:], -up[-2:0:-1]])
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    y, x = np.indices((ny, nx)) / max(ny, nx)
    wall = np.tanh(8.0 * (x - 0.35 - 0.3 * y))
    values = {
        "offset": -0.5 - 0.1 * wall,
        "switchable": 1.0 + 0.4 * wall,
        "coercive_falling_V": -2.5 - wall + 0.3 * rng.normal(size=(ny, nx)),
        "coercive_rising_V": 3.0 + 0.5 * wall + 0.3 * rng.normal(size=(ny, nx)),
        "slope_per_V": 0.01 * y,
        "falling_low_V": rng.uniform(0.7, 2.0, (ny, nx)),
        "falling_high_V": rng.uniform(0.7, 2.0, (ny, nx)),
        "rising_low_V": rng.uniform(0.7, 2.0, (ny, nx)),
        "rising_high_V": rng.uniform(0.7, 2.0, (ny, nx)),
    }
    truth = problem(ny, nx, pixel_nm=40.0).at({f"forward.pixel.{n}": v for n, v in values.items()})
    drawn = drawn_data(truth, bias, jax.random.fold_in(key, 1))
    return truth, bias, drawn


def load(
    file,
    channel: str | None = None,
    bias_min_V: float | None = None,
    bias_max_V: float | None = None,
    noise: Literal["normal", "student"] = "normal",
) -> tuple[dict[str, Any], Sweep, Loops]:
    """Responses `[y, x, bias]` of a file, the biases in the order in which they were applied.

    **Arguments:**

    - `channel`: which array of the file.
    - `bias_min_V`, `bias_max_V`: the part of the sweep that is fitted.
    - `noise`: `normal`, or `student` where single responses are far off.

    **Raises:** `ValueError` for other shapes, an axis that is no bias, a sweep in one direction.
    """
    image = spectrum_image(read(file, channel))
    bias = in_unit(image.axis, VOLTS, f"{image.axis.name or 'the last axis'}")
    inside = (bias >= (-np.inf if bias_min_V is None else bias_min_V)) & (
        bias <= (np.inf if bias_max_V is None else bias_max_V)
    )
    bias, y = bias[inside], image.y[..., inside]
    if len(bias) < 3 or not np.ptp(bias) > 0 or len(set(np.sign(np.diff(bias))) - {0.0}) < 2:
        raise ValueError(
            f"{len(bias)} biases in one direction: a loop is a sweep up and down, in the order in "
            "which it was measured"
        )
    own = noise_sd(y)
    options = image.options() | {
        "low_V": float(bias.min()),
        "high_V": float(bias.max()),
        "step_V": float(np.median(np.abs(np.diff(np.unique(bias))))),
        "level": float(np.nanpercentile(np.abs(y), 99.9)) or 1.0,
        "sigma": float(np.exp(np.median(np.log(own)))),
        # within two standard deviations of what the pixels of this map show
        "noise": noise,
        "sigma_factor": float(np.exp(max(1.0, 2.0 * np.std(np.log(own))))),
    }
    return options, jnp.asarray(bias, float), jnp.asarray(y, float)


def starts(pixel: InverseProblem, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Levels, coercive biases and noise that the loops show, by names of a pixel."""
    guess = under("forward", guesses.loop(x, y))
    guess["noise.sigma"] = noise_sd(y)
    return {n: v for n, v in guess.items() if n in pixel.priors}


def stages(
    problem: InverseProblem,
    x: Sweep,
    y: Any,
    *,
    steps: int = 400,
    neighbours: int = 2,
    smooth: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
) -> list:
    """All loops at once, each until it has converged.

    **Arguments:**

    - `steps`: of Gauss-Newton, at most.
    - `neighbours`: how often each pixel begins again from its best neighbour.
    - `smooth`: unknowns of which neighbouring pixels are alike, as far as the data show it.
    - `shared`: unknowns that are the same for the `map`, each `row` or each `column`, by name.
    """
    return [
        fit_each_pixel(starts, steps=steps, neighbours=neighbours, smooth=smooth, shared=shared)
    ]


def conclude(solution: Solution, x: Sweep, y: Any) -> Solution:
    """With the maps of all parameters and of what is read off a loop."""
    return conclude_map(solution, derived=FerroelectricLoop.numbers, first="coercive_rising_V")


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Against the truth: one loop for all pixels, the areas under the branches, the fits."""
    classical = starts(one_pixel(truth)[0], np.asarray(x), np.asarray(y))
    return compare_map(solution, truth, classical, FerroelectricLoop.numbers)


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Maps with errors, loops of some pixels, how the fits ended."""
    return map_figures(solution, x, y, DRAWN, "response")
