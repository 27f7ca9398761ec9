"""From outcomes to what a Gaussian process can model: monotone, and back.

Loops on real instruments have heavy tails (one pixel at sixteen standard deviations); an affine
scaling lets such a point flatten all others. Where tails are not heavy it is the better one: the
evidence can tell.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SCALES = ("robust", "linear", "none")
MAD_TO_SD = 1.4826  # of a normal distribution


class Scale(NamedTuple):
    """z = (f((y - centre) / width) - location) / spread with f = arcsinh, or f = identity."""

    centre: float
    width: float
    location: float
    spread: float
    bent: bool

    def apply(self, y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        z = (np.asarray(y, float) - self.centre) / self.width
        return ((np.arcsinh(z) if self.bent else z) - self.location) / self.spread

    def log_slope(self, y: Float[np.ndarray, "n"]) -> float:
        """sum log dz/dy: what the scale adds to the log evidence of y over that of z."""
        u = (np.asarray(y, float) - self.centre) / self.width
        bend = -0.5 * np.sum(np.log1p(u**2)) if self.bent else 0.0
        return float(bend - u.size * np.log(self.width * self.spread))

    def invert(self, z: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        bent = np.asarray(z, float) * self.spread + self.location
        # beyond 700 sinh is infinite
        plain = np.sinh(np.clip(bent, -700.0, 700.0)) if self.bent else bent
        return plain * self.width + self.centre


def scale_of(y: Float[np.ndarray, "n"], kind: str = "robust") -> Scale:
    """The scale that `kind` gives these outcomes.

    **Arguments:**

    - `kind`: `robust` (arcsinh of the distance from the median in robust standard deviations, then
        to mean 0 and standard deviation 1), `linear` (to mean 0 and standard deviation 1), `none`.

    **Raises:** `ValueError` for another kind or no outcomes.
    """
    if kind not in SCALES:
        raise ValueError(f"scale {kind!r}; there are {', '.join(SCALES)}")
    y = np.asarray(y, float)
    if not y.size:
        raise ValueError("there are no outcomes to scale")
    if kind == "none":
        return Scale(0.0, 1.0, 0.0, 1.0, False)
    spread = _positive(y.std())
    if kind == "linear":
        return Scale(float(y.mean()), spread, 0.0, 1.0, False)
    centre = float(np.median(y))
    deviation = MAD_TO_SD * float(np.median(np.abs(y - centre)))
    # more than half of the outcomes may be equal
    width = deviation if deviation > 1e-9 * spread else spread
    bent = np.arcsinh((y - centre) / width)
    return Scale(centre, width, float(bent.mean()), _positive(bent.std()), True)


def _positive(spread: float) -> float:
    return float(spread) if spread > 0.0 else 1.0  # constant outcomes
