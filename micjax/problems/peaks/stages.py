"""How `micjax.problems.peaks` is solved: all spectra at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpyro.distributions as dist

from micjax.core.problem import InverseProblem
from micjax.inference.maps.each import one_pixel
from micjax.inference.maps.stage import fit_each_pixel
from micjax.physics.spectra import guesses
from micjax.problems.peaks.number import choose_number, told_apart
from micjax.problems.peaks.pursuit import pursued
from micjax.problems.peaks.setting import BACKGROUND_LEVEL, Axis
from micjax.problems.shared.spectrum_images import noise_sd

FLOOR = 10.0  # percentile of the channels, that a background is about


def starts(pixel: InverseProblem, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The largest maxima of each spectrum, or the largest near each expected centre."""
    lines = pixel.forward.names()
    span, step = float(np.ptp(x)), float(np.median(np.diff(x)))
    windows = [_window(pixel.priors.get(f"forward.{n}.centre")) for n in lines]
    if not lines:
        some = [{"background": guesses.peak(x, y)["background"]}]
    elif all(high - low < 0.9 * span for low, high in windows):
        some = []
        for low, high in windows:
            there = (x >= low) & (x <= high)
            some.append(guesses.peak(x[there], y[..., there]) if there.sum() > 2 else {})
    else:
        some = guesses.peaks(x, y, len(lines), separation=max(span / 20.0, 2.0 * step))
    out: dict[str, np.ndarray] = {}
    for name, guess in zip(lines, some, strict=bool(lines)):
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


def several_starts(pixel: InverseProblem, x: np.ndarray, y: np.ndarray) -> list[dict]:
    """`starts`, and where lines of other widths stand out: a broad line beside a narrow one is no
    maximum."""
    first, lines = starts(pixel, x, y), pixel.forward.names()
    seen = np.isfinite(y)
    floor = np.nanpercentile(np.where(seen.any(axis=-1, keepdims=True), y, 0.0), FLOOR, axis=-1)
    rest = np.where(seen, y - floor[..., None], 0.0)
    size = float(np.nanmax(np.abs(y)))
    variance = np.where(seen, np.maximum(np.abs(y), 1e-6 * size), 0.0)
    if "noise.sigma" in first:
        variance = np.where(seen, np.square(first["noise.sigma"])[..., None], 0.0)
    second = first | pursued(rest, variance, lines, x, 1e-3 * size)
    if (level := f"forward.{BACKGROUND_LEVEL}") in second:
        second[level] = np.maximum(floor, 1e-3 * size)
    return [first, {n: v for n, v in second.items() if n in pixel.priors}]


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

    **Raises:** `ValueError` for `smooth` or `shared` where the number of peaks is to be chosen.
    """
    pixel, _ = one_pixel(problem)
    if pixel.forward.numbers:
        if smooth or shared:
            raise ValueError(
                f"smooth and shared go with one number of peaks, not with {pixel.forward.numbers}"
            )
        return [choose_number(starts, steps=steps, neighbours=neighbours)]
    heights = [n for n in pixel.priors if n.endswith(".height")]
    lines = pixel.forward.names()
    apart = told_apart(lines, {n.removeprefix("forward."): p for n, p in pixel.priors.items()})
    return [
        fit_each_pixel(
            starts if len(lines) < 2 or apart else several_starts,
            linear=heights,
            steps=steps,
            neighbours=neighbours,
            smooth=smooth,
            shared=shared,
        )
    ]
