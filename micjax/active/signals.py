"""From a measured curve to the one number that a learner follows."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Curve = Float[np.ndarray, "n"]
Signal = Callable[[Curve, Curve], float]  # (values, where along the axis) -> a number


def loop_area(values: Curve, along: Curve) -> float:
    """The area that a hysteresis loop encloses (shoelace formula), in units of both axes."""
    ahead_values, ahead = np.roll(values, -1), np.roll(along, -1)
    return float(0.5 * np.abs(np.sum(along * ahead_values - ahead * values)))


SIGNALS: dict[str, Signal] = {
    "first": lambda values, along: float(values[0]),
    "mean": lambda values, along: float(np.mean(values)),
    "max": lambda values, along: float(np.max(values)),
    "min": lambda values, along: float(np.min(values)),
    "range": lambda values, along: float(np.ptp(values)),
    "rms": lambda values, along: float(np.sqrt(np.mean(values**2))),
    "integral": lambda values, along: float(np.trapezoid(values, along)),
    "loop_area": loop_area,
}


def signal(name: str) -> Signal:
    """The function called `name`.

    **Raises:** `ValueError` for another name.
    """
    if name not in SIGNALS:
        raise ValueError(f"signal {name!r}; there are {', '.join(SIGNALS)}")
    return SIGNALS[name]
