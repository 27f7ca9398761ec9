"""What time does to a twin: a sample that moves under the probe, and answers that come late."""

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array, Float

from micjax.instruments.base import (
    Aborted,
    Axis,
    Frame,
    Instrument,
    InstrumentError,
    LimitError,
    Mode,
    Over,
    Record,
    check_over,
    check_target,
    points_of,
)
from micjax.instruments.guard import narrowed, travel_s
from micjax.instruments.twins.artefacts import Layer, from_zero_on, generator

Places = Float[np.ndarray, "n 2"]  # (x, y) in m


class Drifting(Layer):
    """What is measured at (x, y) is what lies at (x, y) - drift(t), t running on within a frame.

    The clock goes on by the travel from the place of the last measurement and by the seconds of
    each mode, so a campaign that is taken up again meets the drift that it would have met. Times
    of day play no part.

    **Arguments:**

    - `key`: of the random walk.
    - `velocity`: (x, y) in m/s.
    - `walk`: sd in m of a second's random step along x and y each, after n seconds sqrt(n) times
        that; straight within a second.
    - `margin`: x and y end so many m before those of the instrument. When the sample has drifted
        further, measurements that would leave the instrument's axes are refused.
    - `clock`: says how many seconds it is since the beginning, if that is not simulated.

    **Raises:** `LimitError` for a margin that leaves nothing; `ValueError` for an instrument
    without x and y, or with frames and no paths of the same channels, which a frame is measured by.
    """

    def __init__(
        self,
        instrument: Instrument,
        key: Array,
        *,
        velocity: tuple[float, float] = (0.0, 0.0),
        walk: float = 0.0,
        margin: float,
        clock: Callable[[], float] | None = None,
    ):
        super().__init__(instrument)
        if missing := {"x", "y"} - set(instrument.axes):
            raise ValueError(f"it has no {', '.join(sorted(missing))} to drift along")
        from_zero_on(speed=math.hypot(*velocity), walk=walk, margin=margin)
        ends = {n: (instrument.axes[n].lo + margin, instrument.axes[n].hi - margin) for n in "xy"}
        self._axes = narrowed(instrument.axes, ends)
        self._ways = {n: self._way(n) for n, m in instrument.modes.items() if m.kind == "frame"}
        self._velocity, self._walk, self._key = np.array(velocity), walk, key
        self._clock = clock
        self._seconds, self._place = 0.0, None  # when and where the last measurement ended

    def _way(self, frame: str) -> str:
        modes = self.instrument.modes
        for name, mode in modes.items():
            if mode.kind == "path" and mode.channels == modes[frame].channels:
                return name
        raise ValueError(f"{frame} takes frames, and no mode goes over paths of the same channels")

    @property
    def axes(self) -> Mapping[str, Axis]:
        return self._axes

    def drift(self, seconds: Float[np.ndarray, " n"]) -> Places:
        """How far the sample has moved by then, m."""
        moved = seconds[:, None] * self._velocity
        if self._walk == 0.0:
            return moved
        # the same steps each time, as many as it takes
        steps = generator(self._key, "drift").standard_normal((int(seconds.max()) + 1, 2))
        walked = self._walk * np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        whole_seconds = np.arange(len(walked))
        return moved + np.stack([np.interp(seconds, whole_seconds, w) for w in walked.T], axis=-1)

    def acquire(self, mode: str, over: Over = None) -> Record:
        asked, now = check_over(self.axes, self.modes, mode, over), self.read()
        places = np.array([[now["x"], now["y"]]]) if over is None else points_of(over)
        places = places.reshape(-1, 2)
        travel = travel_s(self.axes, self._place or now, now)
        begun = self._seconds + travel if self._clock is None else self._clock()
        lasts = asked.cost(over)[0]
        times = begun + lasts * (np.arange(len(places)) + 0.5) / len(places)
        drift = self.drift(times)
        self._check(places - drift)
        if over is None:
            record = self._at_point(mode, now, drift[0])
        else:
            measured = self.instrument.acquire(self._ways.get(mode, mode), places - drift)
            record = _laid_out(measured, over)
        self._seconds, self._place = begun + lasts, now
        meta = {**record.meta, "drifting": {"seconds": self._seconds, "place": now}}
        return dataclasses.replace(record, meta=meta)

    def go_on_from(self, record: Record) -> None:
        """Sets the clock to the end of a measurement of before."""
        if "drifting" not in record.meta:
            raise InstrumentError("what was measured before was measured without this drift")
        state = record.meta["drifting"]
        self._seconds, self._place = state["seconds"], dict(state["place"])

    def _check(self, places: Places) -> None:
        for name, values in zip("xy", places.T, strict=True):
            axis = self.instrument.axes[name]
            if values.min() < axis.lo or values.max() > axis.hi:
                raise LimitError(
                    f"the sample has drifted, and {name} from {values.min():g} to "
                    f"{values.max():g} m of it is outside {axis.lo:g} to {axis.hi:g} m"
                )

    def _at_point(self, mode: str, now: Mapping[str, float], drift: np.ndarray) -> Record:
        x, y = drift.tolist()
        self.instrument.move({"x": now["x"] - x, "y": now["y"] - y})
        try:
            record = self.instrument.acquire(mode)
        finally:
            self.instrument.move({"x": now["x"], "y": now["y"]})
        at = {**record.at, "x": record.at["x"] + x, "y": record.at["y"] + y}
        return dataclasses.replace(record, at=at)


class Latency(Layer):
    """Every move and every measurement begins `seconds` later; `stop` ends the waiting.

    The clock of a `Drifting` goes on meanwhile if that is around this layer, not if it is inside.
    """

    def __init__(self, instrument: Instrument, seconds: float):
        super().__init__(instrument)
        from_zero_on(seconds=seconds)
        self._seconds, self._stopped = seconds, threading.Event()

    @property
    def axes(self) -> Mapping[str, Axis]:
        return {
            n: dataclasses.replace(a, settle=a.settle + self._seconds)
            for n, a in self.instrument.axes.items()
        }

    @property
    def modes(self) -> Mapping[str, Mode]:
        return {
            n: dataclasses.replace(m, seconds=lambda over, m=m: m.cost(over)[0] + self._seconds)
            for n, m in self.instrument.modes.items()
        }

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        target = check_target(self.axes, target)
        self._wait()
        return self.instrument.move(target)

    def acquire(self, mode: str, over: Over = None) -> Record:
        check_over(self.axes, self.modes, mode, over)
        self._wait()
        return self.instrument.acquire(mode, over)

    def stop(self) -> None:
        self._stopped.set()
        self.instrument.stop()

    def _wait(self) -> None:
        self._stopped.clear()
        if self._stopped.wait(self._seconds):
            raise Aborted("it was stopped before it began")


def _laid_out(record: Record, over: Over) -> Record:
    """What was measured along the places that a path or a frame had drifted to, as it was asked
    for."""
    points = points_of(over)
    way = next(iter(record.dims.values()))[0]
    coords = {n: c for n, c in record.coords.items() if n != way}
    if not isinstance(over, Frame):
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        along = {way: (np.concatenate([[0.0], np.cumsum(steps)]), "m")}
        return dataclasses.replace(record, coords=coords | along)
    if over.angle == 0.0:
        coords |= {"y": (points[:, 0, 1], "m"), "x": (points[0, :, 0], "m")}
    return dataclasses.replace(
        record,
        data={n: np.reshape(v, over.shape + np.shape(v)[1:]) for n, v in record.data.items()},
        dims={n: ("y", "x", *dims[1:]) for n, dims in record.dims.items()},
        coords=coords,
    )
