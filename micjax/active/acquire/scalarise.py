"""From outcomes to what a Gaussian process can model: monotone, and back.

Loops on real instruments have heavy tails (one pixel at sixteen standard deviations); an affine
scaling lets such a point flatten all others. Where tails are not heavy it is the better one: the
evidence can tell.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SCALES = ("robust", "linear", "log", "likeliest", "none")
MAD_TO_SD = 1.4826  # of a normal distribution


class Scale(NamedTuple):
    """z = (f((y - centre) / width) - location) / spread, with f the `bend`."""

    centre: float
    width: float
    location: float
    spread: float
    bend: str  # "arcsinh", "log" or "none"

    def apply(self, y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        u = (np.asarray(y, float) - self.centre) / self.width
        if self.bend == "log":
            with np.errstate(divide="ignore"):
                u = np.log(np.maximum(u, 0.0))
        return ((np.arcsinh(u) if self.bend == "arcsinh" else u) - self.location) / self.spread

    def log_slopes(self, y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """log dz/dy at each outcome."""
        u = (np.asarray(y, float) - self.centre) / self.width
        bend = {
            "arcsinh": lambda: -np.log(np.hypot(1.0, u)),
            "log": lambda: -np.log(u),
            "none": lambda: np.zeros(u.shape),
        }[self.bend]()
        return bend - np.log(self.width) - np.log(self.spread)

    def log_slope(self, y: Float[np.ndarray, "n"]) -> float:
        """sum log dz/dy: what the scale adds to the log evidence of y over that of z."""
        return float(np.sum(self.log_slopes(y)))

    def noise_ratios(
        self, y: Float[np.ndarray, "n"], y_sd: Float[np.ndarray, "n"] | None
    ) -> Float[np.ndarray, "n"]:
        """The standard deviations of outcomes on the scale over the median one of them; 1 for those
        that are not known (NaN)."""
        if y_sd is None or not np.isfinite(y_sd).any():
            return np.ones(len(y))
        log_sd = np.log(y_sd) + self.log_slopes(y)
        return np.exp(np.nan_to_num(log_sd - np.nanmedian(log_sd)))

    def invert(self, z: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        bent = np.asarray(z, float) * self.spread + self.location
        if self.bend != "none":
            bent = np.clip(bent, -700.0, 700.0)  # beyond, the exponential is infinite
        plain = {"arcsinh": np.sinh, "log": np.exp, "none": np.asarray}[self.bend](bent)
        return plain * self.width + self.centre


def scale_of(y: Float[np.ndarray, "n"], kind: str = "robust") -> Scale:
    """The scale that `kind` gives these outcomes.

    **Arguments:**

    - `kind`: `robust` (arcsinh of the distance from the median in robust standard deviations, then
        to mean 0 and standard deviation 1), `linear` (to mean 0 and standard deviation 1), `log`
        (the same of the logarithm), `none`; `likeliest`: the one of the first three on which the
        outcomes are most probable as independent normal numbers (Box & Cox 1964, sec. 3).

    **Raises:** `ValueError` for another kind, no outcomes, or a logarithm of what is not positive.
    """
    if kind not in SCALES:
        raise ValueError(f"scale {kind!r}; there are {', '.join(SCALES)}")
    y = np.asarray(y, float)
    if not y.size:
        raise ValueError("there are no outcomes to scale")
    if kind == "likeliest":
        kinds = ("robust", "linear", "log") if y.min() > 0.0 else ("robust", "linear")
        return max((scale_of(y, k) for k in kinds), key=lambda scale: scale.log_slope(y))
    if kind == "none":
        return Scale(0.0, 1.0, 0.0, 1.0, "none")
    size = float(np.abs(y).max()) or 1.0  # the unit of outcomes that are all the same
    centre = float(np.median(y))
    width = float(spread(y)) or size
    if kind == "linear":
        return Scale(float(centre + np.mean(y - centre)), width, 0.0, 1.0, "none")
    if kind == "log":
        if not y.min() > 0.0:
            raise ValueError(
                f"the lowest outcome is {y.min():.6g}; a logarithm wants positive ones"
            )
        log_y = np.log(y)
        return Scale(0.0, 1.0, float(log_y.mean()), float(spread(log_y)) or 1.0, "log")
    deviation = MAD_TO_SD * float(np.median(np.abs(y - centre)))
    # more than half of the outcomes may be equal
    width = deviation if deviation > 1e-9 * width else width
    bent = np.arcsinh((y - centre) / width)
    return Scale(centre, width, float(bent.mean()), float(spread(bent)) or 1.0, "arcsinh")


def spread(values: Float[np.ndarray, "..."], axis: int | None = None) -> Float[np.ndarray, "..."]:
    """The standard deviation, of values of any size; 0 where they differ by no more than rounding.

    The squares of values below 1e-154 underflow, and the mean of equal ones is off by rounding.
    """
    values = np.asarray(values, float)
    far = np.ptp(values, axis=axis, keepdims=True)
    rounding = 4.0 * np.finfo(float).eps * np.max(np.abs(values), axis=axis, keepdims=True)
    unit = np.where(far > rounding, far, np.inf)
    shifted = (values - np.min(values, axis=axis, keepdims=True)) / unit
    size = np.squeeze(np.where(far > rounding, far, 0.0), axis)
    return np.asarray(np.std(shifted, axis=axis) * size)
