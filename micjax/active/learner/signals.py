"""From what was measured to the one number that a learner follows."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from micjax.core.names import unknown_name
from micjax.instruments import Record

SD = "_sd"  # after the name of an outcome: that of its standard deviation
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


def channel_of(record: Record, channel: str | None) -> str:
    """The channel of a record that is meant; the only one need not be named.

    **Raises:** `ValueError` for one that is not there, or is neither a number nor a curve.
    """
    chosen = next(iter(record.data)) if channel is None and len(record.data) == 1 else channel
    if chosen is None:
        raise ValueError(f"one channel of {', '.join(record.data)} has to be named")
    if chosen not in record.data:
        raise ValueError(unknown_name("channel", chosen, record.data))
    if (shape := np.shape(record.data[chosen])) and len(shape) > 1:
        raise ValueError(f"{chosen} of shape {shape} is neither a number nor a curve")
    return chosen


def reduced(name: str, channel: str | None = None) -> Callable[[Record], float]:
    """A record as one number: the signal `name` of a curve, or the number that it is.

    **Arguments:**

    - `channel`: of the record; the only one need not be named.

    **Raises:** `ValueError` for another signal; the function too, for a channel that the record has
    not, or one that is neither a number nor a curve.
    """
    reduce = signal(name)

    def number(record: Record) -> float:
        chosen = channel_of(record, channel)
        values = np.asarray(record.data[chosen])
        if values.ndim == 0:
            return float(values)
        (along,) = record.dims[chosen]
        where = record.coords[along][0] if along in record.coords else np.arange(values.size)
        return reduce(values, np.asarray(where, float))

    return number
