"""An instrument as devices for the plans of Bluesky.

Its protocols are structural, so nothing of it is imported here: whoever has a RunEngine has
`micjax[bluesky]`.
"""

import asyncio
import concurrent.futures
import time
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from micjax.instruments.base import (
    Aborted,
    Frame,
    Instrument,
    NotReady,
    Over,
    Record,
    check_over,
    check_target,
)


class Devices(NamedTuple):
    """Bluesky devices of one instrument; its verbs come in turn, in a thread of their own.

    **Arguments:**

    - `axes`: what plans set and read, by axis.
    - `detectors`: what plans trigger and read, by mode; those of points.
    - `detector`: `detector(mode, over)` is one more, which goes over a `Frame` or a path.
    """

    axes: dict[str, "Movable"]
    detectors: dict[str, "Detector"]
    detector: Callable[..., "Detector"]


def as_bluesky(instrument: Instrument, name: str = "") -> Devices:
    """The axes and modes of an instrument as devices for the plans of Bluesky.

    A move that is out of range or does not arrive, and a measurement that fails, end the run with
    exit status "fail" and the reason. When a run ends or pauses while something goes on, devices
    that were moved are stopped, and so the instrument is, and what waits for its turn does not
    begin. What it has measured all the same is read when the plan goes on.

    **Arguments:**

    - `name`: comes before the names of the devices, "afm" -> "afm_x"; without it they have the
        names of the axes and modes, which is what a learner wants.
    """
    turns, prefix = _Turns(instrument), f"{name}_" if name else ""

    def detector(mode: str, over: Over = None, name: str | None = None) -> Detector:
        return Detector(turns, mode, over, prefix + (name or mode))

    return Devices(
        {n: Movable(turns, n, prefix + n) for n in instrument.axes},
        {n: detector(n) for n, m in instrument.modes.items() if m.kind == "point"},
        detector,
    )


class _Turns:
    """One verb of an instrument at a time."""

    def __init__(self, instrument: Instrument):
        self.instrument = instrument
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "instrument")
        self._open: set[concurrent.futures.Future] = set()

    def take(self, verb: Callable, *arguments) -> concurrent.futures.Future:
        future = self._worker.submit(verb, *arguments)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def stop(self, success: bool) -> None:
        """A RunEngine calls it after every plan, a good one too: then nothing is open, and a guard
        must not be latched."""
        waiting = list(self._open)
        for future in waiting:
            future.cancel()  # one that has begun goes on until the instrument stops
        if waiting or not success:
            self.instrument.stop()


class Status:
    """What a RunEngine waits for."""

    def __init__(self, future: concurrent.futures.Future, what: str):
        self._future, self._what = future, what

    def add_callback(self, callback: Callable[["Status"], None]) -> None:
        self._future.add_done_callback(lambda _: callback(self))

    def exception(self, timeout: float | int | None = 0.0) -> BaseException | None:
        try:
            return self._future.exception(timeout)
        except concurrent.futures.CancelledError:
            return Aborted("stopped before it began")

    @property
    def done(self) -> bool:
        return self._future.done()

    @property
    def success(self) -> bool:
        return self.done and self.exception() is None

    def __repr__(self) -> str:
        """Stands in the stop document of a run that it has ended."""
        if not self.done:
            return f"{self._what}: under way"
        error = self.exception()
        return f"{self._what}: " + (f"{type(error).__name__}: {error}" if error else "done")


class Movable:
    """One axis: a movable, readable, checkable and stoppable device."""

    parent = None

    def __init__(self, turns: _Turns, axis: str, name: str):
        self.name, self._axis, self._turns = name, axis, turns

    def check_value(self, value: float | int) -> None:
        """**Raises:** `LimitError` where the axis does not allow it."""
        check_target(self._turns.instrument.axes, {self._axis: value})

    def set(self, value: float | int) -> Status:
        instrument = self._turns.instrument
        target = check_target(instrument.axes, {self._axis: value})
        return Status(self._turns.take(instrument.move, target), f"{self.name} to {value:g}")

    def stop(self, success: bool = True) -> None:
        self._turns.stop(success)

    @property
    def position(self) -> float:
        return self._turns.take(self._turns.instrument.read).result()[self._axis]

    @property
    def hints(self) -> dict[str, Any]:
        return {"fields": [self.name]}

    async def read(self) -> dict[str, dict[str, Any]]:
        readings = await asyncio.wrap_future(self._turns.take(self._turns.instrument.read))
        return {self.name: {"value": readings[self._axis], "timestamp": time.time()}}

    def describe(self) -> dict[str, dict[str, Any]]:
        axis = self._turns.instrument.axes[self._axis]
        limits = {"control": {"low": axis.lo, "high": axis.hi}}
        return {self.name: _data_key(np.zeros(()), axis.unit, ()) | {"limits": limits}}

    def read_configuration(self) -> dict[str, Any]:
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        return {}


class Detector:
    """One mode: a triggerable and readable device. Its keys are the channels and the coordinates of
    what was measured, "spectrum_Current"; its configuration is what it goes over.

    **Raises:** `LimitError` for a mode that is not, or that cannot go there.
    """

    parent = None

    def __init__(self, turns: _Turns, mode: str, over: Over, name: str):
        instrument = turns.instrument
        asked = check_over(instrument.axes, instrument.modes, mode, over)
        self.name, self._mode, self._over, self._turns = name, mode, over, turns
        self._record: Record | None = None
        self._turn: concurrent.futures.Future | None = None
        # whether a plan that was paused may measure it again
        self.rewindable = types.SimpleNamespace(get=lambda: asked.repeatable)

    def trigger(self) -> Status:
        self._record = None  # nobody shall read the last one while this one goes on
        self._turn = self._turns.take(self._measure)
        return Status(self._turn, self.name)

    def _measure(self) -> None:
        try:
            self._record = self._turns.instrument.acquire(self._mode, self._over)
        except Aborted as error:
            self._record = error.record  # whole, though it was stopped
            if error.record is None:
                raise

    def _when_measured(self, say: Callable[[], Any]) -> Any:
        """What there is to say: now, or an awaitable of it while the measurement goes on, as after
        a pause that has broken off the waiting for it."""
        if self._turn is None or self._turn.done():
            return say()
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # nobody could await it
            concurrent.futures.wait([self._turn])
            return say()
        return self._later(say)

    async def _later(self, say: Callable[[], Any]) -> Any:
        await asyncio.wait([asyncio.wrap_future(self._turn)])
        return say()

    def _measured(self) -> Record:
        if self._record is None:
            raise NotReady(f"{self.name} has measured nothing yet: trigger it first")
        return self._record

    @property
    def hints(self) -> dict[str, Any]:
        return {"fields": [f"{self.name}_{n}" for n in self._measured().data]}

    def read(self) -> dict[str, dict[str, Any]] | Awaitable[dict[str, dict[str, Any]]]:
        return self._when_measured(lambda: _readings(self._columns(), self._measured().t1))

    def describe(self) -> dict[str, dict[str, Any]] | Awaitable[dict[str, dict[str, Any]]]:
        return self._when_measured(
            lambda: {n: _data_key(*column) for n, column in self._columns().items()}
        )

    def read_configuration(self) -> dict[str, dict[str, Any]]:
        return _readings(self._settings(), time.time())

    def describe_configuration(self) -> dict[str, dict[str, Any]]:
        return {n: _data_key(*column) for n, column in self._settings().items()}

    def _columns(self) -> dict[str, tuple[np.ndarray, str, tuple[str, ...]]]:
        record = self._measured()
        coords = {n: (values, unit, (n,)) for n, (values, unit) in record.coords.items()}
        channels = {n: (v, record.units[n], record.dims[n]) for n, v in record.data.items()}
        return {f"{self.name}_{n}": column for n, column in (coords | channels).items()}

    def _settings(self) -> dict[str, tuple[np.ndarray, str, tuple[str, ...]]]:
        if isinstance(self._over, Frame):
            units = {"center": "m", "size": "m", "angle": "rad", "dwell": "s"}
            settings = {n: (np.asarray(getattr(self._over, n)), unit) for n, unit in units.items()}
        else:
            settings = {} if self._over is None else {"points": (self._over, "m")}
        dims = ((), ("xy",), ("point", "xy"))
        return {f"{self.name}_{n}": (v, unit, dims[v.ndim]) for n, (v, unit) in settings.items()}


def _readings(columns: Mapping[str, tuple], timestamp: float) -> dict[str, dict[str, Any]]:
    return {
        name: {"value": v if np.ndim(v) else np.asarray(v).item(), "timestamp": timestamp}
        for name, (v, *_) in columns.items()
    }


def _data_key(values, unit: str, dims: tuple[str, ...]) -> dict[str, Any]:
    values = np.asarray(values)
    scalar = {"b": "boolean", "i": "integer", "u": "integer"}.get(values.dtype.kind, "number")
    return {
        "source": "micjax",
        "dtype": "array" if values.ndim else scalar,
        "dtype_numpy": values.dtype.str,
        "shape": list(values.shape),
        "units": unit,
        "dims": list(dims),
    }
