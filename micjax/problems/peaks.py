"""Peaks on a background at every pixel of a map: photoluminescence, Raman, diffraction profiles.

    y(x) ~ Poisson(sum of lines + background)    or    Normal(the same, sigma)

Each pixel has its own heights, centres, widths and background; heights of lines are solved for in
each step and need no start.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem
from micjax.core.ranges import positive
from micjax.inference.maps.each import each_pixel, one_pixel
from micjax.inference.maps.stage import fit_each_pixel
from micjax.inference.solution import Solution
from micjax.io import read
from micjax.physics.noise import Gaussian, Poisson
from micjax.physics.spectra import guesses
from micjax.physics.spectra.backgrounds import ExponentialDecay, Level, PowerLaw, StraightLine
from micjax.physics.spectra.composed import SumOf
from micjax.physics.spectra.line_shapes import (
    GaussianLine,
    LorentzianLine,
    PseudoVoigtLine,
    VoigtLine,
)
from micjax.physics.spectra.scales import Priors, under
from micjax.problems.shared.map_conclusion import compare_map, conclude_map
from micjax.problems.shared.map_show import map_figures
from micjax.problems.shared.spectrum_images import (
    Law,
    NoiseChoice,
    noise_options,
    noise_sd,
    spectrum_image,
)

Axis = Float[Array, " n"]
Spectra = Float[Array, "ny nx n"]
Shape = Literal["gaussian", "lorentzian", "pseudo_voigt", "voigt"]
Background = Literal["none", "level", "line", "power_law", "exponential"]

LINES = {
    "gaussian": GaussianLine,
    "lorentzian": LorentzianLine,
    "pseudo_voigt": PseudoVoigtLine,
    "voigt": VoigtLine,
}
BACKGROUNDS = ("none", "level", "line", "power_law", "exponential")
BACKGROUND_LEVEL = "background.level"


def problem(
    ny: int = 12,
    nx: int = 12,
    peaks: int = 2,
    shape: Shape = "gaussian",
    background: Background = "level",
    centres: Sequence[float] | None = None,
    within: float | None = None,
    noise: Law = "poisson",
    level: float = 100.0,
    sigma: float = 1.0,
    sigma_factor: float = 3.0,
    signal_low: float = 1.6,
    signal_high: float = 2.4,
    signal_step: float = 0.01,
    signal_name: str = "energy",
    signal_unit: str = "eV",
    pixel_nm: float | Sequence[float] | None = None,
) -> InverseProblem:
    """So many peaks, and a background, at every pixel.

    **Arguments:**

    - `ny`, `nx`: pixels.
    - `peaks`: of each spectrum; they are told apart by `centres`, or by their order.
    - `shape`: `gaussian`, `lorentzian`, `pseudo_voigt` or `voigt`.
    - `background`: `none`, `level`, `line`, `power_law` or `exponential`.
    - `centres`: where they are expected, in the unit of the axis.
    - `within`: how far from there they may be; a tenth of the axis if it is not given.
    - `noise`: `poisson` for counts, `normal` for values with one standard deviation a spectrum.
    - `level`: about the largest value.
    - `sigma`: that standard deviation, to within `sigma_factor`.
    - `signal_low`, `signal_high`, `signal_step`, `signal_name`, `signal_unit`: of the axis.
    - `pixel_nm`: edge of a pixel, or (dy, dx), if it is known.

    **Raises:** `ValueError` for another shape, background or noise, another number of centres than
    of peaks, centres beyond the axis, and numbers that are not positive.
    """
    positive(peaks=peaks, level=level, sigma=sigma, signal_step=signal_step)
    if not signal_high - signal_low >= signal_step:
        raise ValueError(f"from {signal_low} to {signal_high} in steps of {signal_step}: no axis")
    if not sigma_factor > 1.0:
        raise ValueError(f"sigma_factor = {sigma_factor}: more than 1 is needed")
    for what, value, allowed in (
        ("shape", shape, LINES),
        ("background", background, BACKGROUNDS),
        ("noise", noise, ("poisson", "normal")),
    ):
        if value not in allowed:
            raise ValueError(f"{what} = {value!r}: one of {', '.join(allowed)} is needed")
    if centres is not None and len(centres) != peaks:
        raise ValueError(f"{len(centres)} centres of {peaks} peaks")
    if centres is not None and not all(signal_low <= c <= signal_high for c in centres):
        raise ValueError(f"centres {list(centres)}: from {signal_low} to {signal_high} are needed")
    span = signal_high - signal_low
    axis = np.linspace(signal_low, signal_high, round(span / signal_step) + 1)
    size = np.full(axis.shape, level)
    places = np.linspace(signal_low, signal_high, peaks + 2)[1:-1] if centres is None else centres
    parts: dict[str, Any] = {}
    for i, place in enumerate(places):
        parts[f"peak_{i + 1}"] = _line(shape, level, float(place), span / 10.0)
    if background != "none":
        parts["background"] = _background(background, level / 10.0, signal_low, signal_high)
    model = SumOf(parts)
    priors: Priors = under("forward", model.priors(axis, size))
    if centres is not None:
        reach = span / 10.0 if within is None else within
        positive(within=reach)
        for i, place in enumerate(centres):
            priors[f"forward.peak_{i + 1}.centre"] = dist.Uniform(place - reach, place + reach)
    law: Any = Poisson(1.0)
    if noise == "poisson" and f"forward.{BACKGROUND_LEVEL}" in priors:
        priors[f"forward.{BACKGROUND_LEVEL}"] = dist.HalfNormal(2.0 * level)
    if noise == "normal":
        law = Gaussian(sigma)
        priors["noise.sigma"] = dist.LogNormal(np.log(sigma), np.log(sigma_factor))
    pixel = InverseProblem(model, law, priors)
    return each_pixel(pixel, (ny, nx), pixel_nm, (signal_name, signal_unit))


def _line(shape: Shape, height: float, centre: float, fwhm: float):
    if shape == "voigt":
        return VoigtLine(height, centre, fwhm / 2.0, fwhm / 2.0)
    return LINES[shape](height, centre, fwhm)


def _background(kind: Background, level: float, low: float, high: float):
    middle = (low + high) / 2.0
    if kind == "line":
        return StraightLine(level, 0.0, middle)
    if kind == "power_law":
        if not low > 0:
            raise ValueError(f"a power law from {low} on: the axis must be above 0")
        return PowerLaw(level, 3.0, np.sqrt(low * high))
    if kind == "exponential":
        return ExponentialDecay(level, high - low, low)
    return Level(level)


def example(
    key, ny: int = 12, nx: int = 12, counts: float = 100.0
) -> tuple[InverseProblem, Axis, Spectra]:
    """Photoluminescence of a strained flake: an exciton and its trion, which move together."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    y, x = np.indices((ny, nx)) / max(ny, nx)
    strain = np.exp(-((x - 0.4) ** 2 + (y - 0.6) ** 2) / 0.08)
    exciton = 2.05 - 0.06 * strain
    values = {
        "peak_1.height": counts * (0.3 + 0.4 * x),
        "peak_1.centre": exciton - 0.14 + 0.003 * rng.normal(size=(ny, nx)),
        "peak_1.fwhm": 0.09 + 0.02 * y,
        "peak_2.height": counts * (1.0 - 0.3 * y),
        "peak_2.centre": exciton,
        "peak_2.fwhm": 0.07 + 0.01 * rng.normal(size=(ny, nx)),
        "background.level": 0.05 * counts * (1.0 + x),
    }
    truth = problem(ny, nx, level=counts, pixel_nm=250.0)
    truth = truth.at({f"forward.pixel.{n}": v for n, v in values.items()})
    energy = jnp.linspace(1.6, 2.4, 81)
    drawn = truth.noise(truth.forward(energy)).sample(jax.random.fold_in(key, 1))
    return truth, energy, jnp.asarray(drawn, float)


def load(
    file,
    channel: str | None = None,
    peaks: int = 1,
    shape: Shape = "gaussian",
    background: Background = "level",
    centres: Sequence[float] | None = None,
    within: float | None = None,
    noise: NoiseChoice = "auto",
    signal_min: float | None = None,
    signal_max: float | None = None,
) -> tuple[dict[str, Any], Axis, Spectra]:
    """Spectra `[y, x, channel]`, `[x, channel]` or one of them. Channels that are NaN do not count.

    **Arguments:**

    - `channel`: which array of the file.
    - `peaks`, `shape`, `background`, `centres`, `within`: as of `problem`.
    - `noise`: `poisson`, `normal`, or `auto`: counts if all values are whole numbers not below 0.
    - `signal_min`, `signal_max`: the part of the axis that is fitted.

    **Raises:** `ValueError` for other shapes, and counts that are none.
    """
    field = read(file, channel)
    image = spectrum_image(field, signal_min, signal_max)
    order = np.argsort(image.axis.values)
    axis, y = image.axis.values[order], image.y[..., order]
    options = image.options() | noise_options(field.name, y, noise)
    options |= {"peaks": peaks, "shape": shape, "background": background}
    options |= {"centres": None if centres is None else [float(c) for c in centres]}
    options |= {
        "within": within,
        "level": float(np.nanpercentile(np.abs(y), 99.9)) or 1.0,
        "signal_low": float(axis[0]),
        "signal_high": float(axis[-1]),
        "signal_step": float(np.median(np.diff(axis))),
        "signal_name": image.axis.name or "channel",
        "signal_unit": image.axis.unit,
    }
    return options, jnp.asarray(axis, float), jnp.asarray(y, float)


def starts(pixel: InverseProblem, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The largest maxima of each spectrum, or the largest near each expected centre."""
    lines = [n for n in pixel.forward.parts if n.startswith("peak_")]
    span, step = float(np.ptp(x)), float(np.median(np.diff(x)))
    windows = [_window(pixel.priors.get(f"forward.{n}.centre")) for n in lines]
    if all(high - low < 0.9 * span for low, high in windows):
        some = []
        for low, high in windows:
            there = (x >= low) & (x <= high)
            some.append(guesses.peak(x[there], y[..., there]) if there.sum() > 2 else {})
    else:
        some = guesses.peaks(x, y, len(lines), separation=max(span / 20.0, 2.0 * step))
    out: dict[str, np.ndarray] = {}
    for name, guess in zip(lines, some, strict=True):
        out |= {
            f"forward.{name}.{n}": v for n, v in guess.items() if n in ("height", "centre", "fwhm")
        }
        if "fwhm" in guess:
            halves = {n: guess["fwhm"] / 2.0 for n in ("fwhm_gaussian", "fwhm_lorentzian")}
            out |= {f"forward.{name}.{n}": v for n, v in halves.items()}
    if some and "background" in some[0]:
        floor = 1e-3 * np.abs(np.nan_to_num(y)).max(axis=-1) + 1e-12
        out[f"forward.{BACKGROUND_LEVEL}"] = np.maximum(some[0]["background"], floor)
    out["noise.sigma"] = noise_sd(y)
    return {n: v for n, v in out.items() if n in pixel.priors}


def _window(prior: dist.Distribution | None) -> tuple[float, float]:
    """Where a prior expects a centre."""
    if isinstance(prior, dist.Uniform):
        return float(prior.low), float(prior.high)
    if isinstance(prior, dist.Normal):
        return float(prior.loc - 3.0 * prior.scale), float(prior.loc + 3.0 * prior.scale)
    return -np.inf, np.inf


def stages(
    problem: InverseProblem,
    x: Axis,
    y: Any,
    *,
    steps: int = 200,
    neighbours: int = 1,
    smooth: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
) -> list:
    """All spectra at once, each until it has converged.

    **Arguments:**

    - `steps`: of Gauss-Newton, at most.
    - `neighbours`: how often each pixel begins again from its best neighbour.
    - `smooth`: unknowns of which neighbouring pixels are alike, as far as the data show it.
    - `shared`: unknowns that are the same for the `map`, each `row` or each `column`, by name.
    """
    pixel, _ = one_pixel(problem)
    heights = [n for n in pixel.priors if n.endswith(".height")]
    return [
        fit_each_pixel(
            starts, linear=heights, steps=steps, neighbours=neighbours, smooth=smooth, shared=shared
        )
    ]


def areas(model: SumOf) -> dict[str, Array]:
    """Of the lines, in units of y times those of the axis."""
    return {f"{n}.area": p.area() for n, p in model.parts.items() if hasattr(p, "area")}


def conclude(solution: Solution, x: Axis, y: Any) -> Solution:
    """With the maps of all parameters and of the areas of the lines."""
    unit = solution.problem.forward.axis[1]
    names = ("centre", "fwhm", "fwhm_gaussian", "fwhm_lorentzian", "decay")
    return conclude_map(
        solution,
        units=dict.fromkeys(names, unit),
        derived=areas,
        first="peak_1.centre",
    )


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Against the truth: one value for all pixels, the maxima of the spectra, the fits."""
    return compare_map(
        solution, truth, starts(one_pixel(truth)[0], np.asarray(x), np.asarray(y)), areas
    )


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Maps with errors, spectra of some pixels, how the fits ended."""
    lines = [n for n in solution.problem.forward.pixel.parts if n.startswith("peak_")]
    drawn = [f"{n}.{k}" for k in ("centre", "fwhm", "area") for n in lines]
    return map_figures(solution, x, y, drawn, "signal")
