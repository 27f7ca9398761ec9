"""Where lines stand out of a spectrum, one by one (matching pursuit: Mallat and Zhang 1993)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

WIDTHS = 5  # of the filter that looks for a line


def lines_of_widths(
    x: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k n n"]]:
    """Widths from three channels to a quarter of the axis; and of each the Gaussian lines about
    each channel."""
    span, step = float(np.ptp(x)), float(np.median(np.abs(np.diff(x))))
    widths = np.geomspace(3.0 * step, max(span / 4.0, 4.0 * step), WIDTHS)
    return widths, np.exp(-4.0 * np.log(2.0) * ((x - x[:, None]) / widths[:, None, None]) ** 2)


def pursued(
    rest: Float[np.ndarray, "*map n"],
    variance: Float[np.ndarray, "*map n"],
    lines: Sequence[str],
    x: Float[np.ndarray, " n"],
    least: float,
) -> dict[str, np.ndarray]:
    """A guess of these lines where a spectrum without its background stands out most, each in what
    the ones before leave.

    **Arguments:**

    - `variance`: of the data, 0 where there are none.
    - `least`: height of a line.
    """
    widths, filters = lines_of_widths(x)
    out = {}
    for line in lines:
        place = _largest(rest, variance, filters)
        height, fwhm = np.maximum(place.height, least), widths[place.width]
        rest = rest - height[..., None] * filters[place.width, place.centre]
        guess = {"height": height, "centre": x[place.centre], "fwhm": fwhm}
        guess |= {"fwhm_gaussian": fwhm / 2.0, "fwhm_lorentzian": fwhm / 2.0}
        out |= {f"forward.{line}.{n}": v for n, v in guess.items()}
    return out


class _Place(NamedTuple):
    """Indices of the filter and of the channel, and the height of the line there."""

    width: np.ndarray
    centre: np.ndarray
    height: np.ndarray


def _largest(
    rest: Float[np.ndarray, "*map n"],
    variance: Float[np.ndarray, "*map n"],
    filters: Float[np.ndarray, "k n n"],
) -> _Place:
    """Where a line of one of the widths stands out most, in standard deviations."""
    best = np.full(rest.shape[:-1], -np.inf)
    place = _Place(np.zeros(best.shape, int), np.zeros(best.shape, int), np.zeros(best.shape))
    for i, kernel in enumerate(filters):
        signal = rest @ kernel.T
        spread = np.sqrt(np.maximum(variance @ (kernel**2).T, 0.0))
        score = np.where(spread > 0, signal / np.where(spread > 0, spread, 1.0), -np.inf)
        at = score.argmax(axis=-1)
        largest = np.take_along_axis(score, at[..., None], axis=-1)[..., 0]
        size = np.take_along_axis(signal, at[..., None], axis=-1)[..., 0]
        better = largest > best
        best = np.where(better, largest, best)
        new = i, at, size / np.sum(kernel**2, axis=-1)[at]
        place = _Place(*(np.where(better, n, o) for n, o in zip(new, place, strict=True)))
    return place
