"""Weak priors from the axis and the size of the data alone.

What is positive and may be any size (a width) is log-normal, two standard deviations reaching from
a channel to the whole axis. What may be as small as nothing (a height) is half-normal, of twice the
size of the data. What has a sign is normal, a place on the axis uniform. Data times 1e9 give the
same priors times 1e9.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike

Priors = dict[str, dist.Distribution]

MOST_SPECTRA = 2000  # that the size of a map is read off: more do not change it


class Scales(NamedTuple):
    """What priors are made of: the ends of the axis, its channel, the largest of the data."""

    low: float
    high: float
    step: float
    size: float

    @property
    def span(self) -> float:
        return self.high - self.low

    def place(self) -> dist.Distribution:
        """Anywhere on the axis, a channel beyond its ends at most."""
        return dist.Uniform(self.low - self.step, self.high + self.step)

    def width(self) -> dist.Distribution:
        """From a channel to the whole axis."""
        return spread_over(self.step, self.span)

    def height(self) -> dist.Distribution:
        """From nothing to a few times the data."""
        return dist.HalfNormal(2.0 * self.size)

    def level(self) -> dist.Distribution:
        """Of either sign, a few times the data at most."""
        return dist.Normal(0.0, 2.0 * self.size)


def scales(x: ArrayLike, y: ArrayLike) -> Scales:
    """The scales of data `y` `[..., n]` on an axis `x` `[n]`.

    The size is the 99.9th percentile of |y| over at most `MOST_SPECTRA` of the spectra, that a hot
    pixel does not decide; NaN are left out. Of data that are all zero it is 1.

    **Raises:** `ValueError` for an axis without extent or data of another length.
    """
    x, y = np.asarray(x, float), np.asarray(y)
    if x.ndim != 1 or y.shape[-1:] != x.shape:
        raise ValueError(f"an axis of shape {x.shape} and data of {y.shape}: the last must agree")
    if not np.isfinite(x).all() or not np.ptp(x) > 0:
        raise ValueError("the axis has no extent, or is not finite")
    rows = y.reshape(-1, len(x))
    values = np.abs(rows[:: max(len(rows) // MOST_SPECTRA, 1)].astype(float))
    values = values[np.isfinite(values)]
    size = float(np.percentile(values, 99.9)) if values.size else 0.0
    if size == 0.0 and values.size:
        size = float(values.max())
    steps = np.abs(np.diff(np.unique(x)))
    return Scales(float(x.min()), float(x.max()), float(np.median(steps)), size or 1.0)


def spread_over(least: float, most: float) -> dist.Distribution:
    """Log-normal, its two standard deviations from `least` to `most`."""
    # with two channels alone the ends coincide, and the prior would be a point
    return dist.LogNormal(np.log(least * most) / 2.0, max(np.log(most / least) / 4.0, 0.25))


def under(prefix: str, priors: Mapping[str, dist.Distribution]) -> Priors:
    """The same priors of what stands under `prefix`: `forward.peak.centre`."""
    return {f"{prefix}.{name}": prior for name, prior in priors.items()}
