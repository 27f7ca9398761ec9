"""The problem of `micjax.problems.peaks` and its made-up example."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem
from micjax.core.ranges import positive
from micjax.inference.maps.each import each_pixel
from micjax.physics.noise import Gaussian, Poisson
from micjax.physics.spectra.backgrounds import ExponentialDecay, Level, PowerLaw, StraightLine
from micjax.physics.spectra.composed import SumOf
from micjax.physics.spectra.line_shapes import (
    GaussianLine,
    LorentzianLine,
    PseudoVoigtLine,
    VoigtLine,
)
from micjax.physics.spectra.scales import Priors, under
from micjax.problems.shared.spectrum_images import Law

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


@jax.tree_util.register_pytree_with_keys_class
class LinesOnBackground(SumOf):
    """Lines `peak_1`, `peak_2` and so on, and a background; where their number is not known it is
    one of `numbers`, and there are as many as the largest of these."""

    def __init__(self, parts: Mapping[str, Any], numbers: Sequence[int] = ()):
        super().__init__(parts)
        self.numbers = tuple(numbers)

    def names(self) -> list[str]:
        """Of the lines."""
        return [n for n in self.parts if n.startswith("peak_")]

    def tree_flatten_with_keys(self):
        children, keys = super().tree_flatten_with_keys()
        return children, (keys, self.numbers)

    def tree_flatten(self):
        children, keys = super().tree_flatten()
        return children, (keys, self.numbers)

    @classmethod
    def tree_unflatten(cls, keys, children):
        made = super().tree_unflatten(keys[0], children)
        made.numbers = keys[1]
        return made


def with_lines(pixel: InverseProblem, count: int) -> InverseProblem:
    """The problem of a pixel with the first so many of its lines."""
    there = pixel.forward.names()[:count]
    parts = {
        n: p for n, p in pixel.forward.parts.items() if n in there or not n.startswith("peak_")
    }
    priors = {
        n: prior
        for n, prior in pixel.priors.items()
        if n.split(".")[0] != "forward" or n.split(".")[1] in parts
    }
    return InverseProblem(LinesOnBackground(parts), pixel.noise, priors)


def problem(
    ny: int = 12,
    nx: int = 12,
    peaks: int | Sequence[int] = 2,
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
    - `peaks`: of each spectrum; they are told apart by `centres`, or by their order. Several
        numbers, `[1, 2, 3]`: the evidence chooses one of them for each pixel.
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
    of peaks, centres beyond the axis, centres where the number is to be chosen, no peak and no
    background, and numbers that are not positive.
    """
    numbers = () if isinstance(peaks, int) else tuple(sorted(set(peaks)))
    if not isinstance(peaks, int):
        if (
            any(isinstance(k, bool) for k in peaks)
            or len(numbers) < 2
            or numbers[0] < 0
            or (numbers[0] == 0 and background == "none")
        ):
            raise ValueError(
                f"peaks = {list(peaks)}: two numbers or more are needed to choose from, such as "
                "[1, 2, 3]; 0 only on a background"
            )
        if centres is not None:
            raise ValueError(
                f"centres {list(centres)} and peaks = {list(numbers)}: the number can be chosen of "
                "peaks that may be anywhere; centres go with one number"
            )
        peaks = numbers[-1]
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
    model = LinesOnBackground(parts, numbers)
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
