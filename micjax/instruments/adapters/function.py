"""A Python function of named settings as an instrument."""

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np

from micjax.instruments.base import Axis, Mode, Over, Record, check_over, check_target

log = logging.getLogger("micjax")

Coords = Mapping[str, tuple[np.ndarray, str]]


class Function:
    """What the function says where it stands: the mode "measure", a point.

    **Arguments:**

    - `function`: of the settings by the names of the axes; a number or an array. When it raises,
        the measurement is NaN: a night is not lost by one point.
    - `coords`: `(values, unit)` along each axis of an array, in their order.
    - `channel`, `unit`: of what is measured. `channels`: in their place the names of several, with
        their units; the function then returns all of them by name.
    - `seconds`: of one measurement.
    """

    def __init__(
        self,
        function: Callable[..., object],
        axes: Mapping[str, Axis],
        *,
        coords: Coords | None = None,
        channel: str = "y",
        unit: str = "",
        channels: Mapping[str, str] | None = None,
        seconds: float = 0.0,
    ):
        self._function, self._coords = function, dict(coords or {})
        self._channels = {channel: unit} if channels is None else dict(channels)
        self._by_name = channels is not None
        self.axes = dict(axes)
        self.modes = {"measure": Mode("point", dict(self._channels), seconds)}
        self._at = {n: 0.5 * (a.lo + a.hi) for n, a in self.axes.items()}

    def read(self) -> dict[str, float]:
        return dict(self._at)

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        self._at |= check_target(self.axes, target)
        return self.read()

    def acquire(self, mode: str, over: Over = None) -> Record:
        check_over(self.axes, self.modes, mode, over)
        begun = time.time()
        try:
            told = self._function(**self._at)
            data = {
                n: np.array(told[n] if self._by_name else told, dtype=float) for n in self._channels
            }
        except Exception as error:
            log.warning("%s failed: %s: %s", self._at, type(error).__name__, error)
            data = {n: np.array(np.nan) for n in self._channels}
        dims = {n: self._dims(values.ndim) for n, values in data.items()}
        used = {name for names in dims.values() for name in names}
        return Record(
            data,
            dims,
            dict(self._channels),
            {n: c for n, c in self._coords.items() if n in used},
            self.read(),
            begun,
            time.time(),
        )

    def _dims(self, count: int) -> tuple[str, ...]:
        names = [*self._coords][:count]
        return (*names, *(f"axis{i}" for i in range(len(names), count)))

    def stop(self) -> None:
        pass
