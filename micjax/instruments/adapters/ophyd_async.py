"""Devices of ophyd-async as an instrument.

They are used by what they can do, so nothing of ophyd-async is imported here: whoever has a device
has `micjax[bluesky]`.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import numpy as np

from micjax.core.names import unknown_name
from micjax.instruments.arrival import check_arrived, check_tolerances
from micjax.instruments.base import (
    Aborted,
    Axis,
    InstrumentError,
    LimitError,
    LinkError,
    Mode,
    MoveError,
    NotReady,
    Over,
    Record,
    check_over,
    check_target,
)

STOP_S = 2.0  # how long a stop waits for a verb to end, and for the devices


class OphydAsync:
    """Devices of ophyd-async, in an event loop and a thread of their own.

    **Arguments:**

    - `axes`: `{name: (device, axis, scale)}`. The device can be set and located; one of its units
        is `scale` SI units, 1e-3 for mm. The axis has a tolerance: a motor that stays where it is
        would not be noticed otherwise.
    - `modes`: `{name: (device, mode)}`. The device is triggered, if it can be, and read. The
        channels of the mode are its keys, in its own units. Detectors that write files are not
        meant.
    - `timeout_s`: the longest that a move or a measurement may take.

    **Raises:** `ValueError` for an axis without tolerance, or a mode over a frame or a path;
    `LinkError` for devices that do not connect; `NotReady` for channels that they have not.
    """

    def __init__(
        self,
        axes: Mapping[str, tuple[Any, Axis, float]],
        modes: Mapping[str, tuple[Any, Mode]],
        *,
        timeout_s: float = 60.0,
    ):
        for name, (_, mode) in modes.items():
            if mode.kind != "point":
                raise ValueError(f"{name} goes over a {mode.kind}; ophyd-async devices do not")
        self.axes = {n: axis for n, (_, axis, _) in axes.items()}
        check_tolerances(self.axes)
        self.modes = {n: mode for n, (_, mode) in modes.items()}
        self._movables = {n: device for n, (device, _, _) in axes.items()}
        self._scales = {n: scale for n, (_, _, scale) in axes.items()}
        self._detectors = {n: device for n, (device, _) in modes.items()}
        self._timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._wait(self._connected)
        except BaseException:
            self.close()
            raise

    def read(self) -> dict[str, float]:
        return self._wait(self._located)

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        target = check_target(self.axes, target)
        try:
            self._wait(self._sent, target)
        except LinkError as error:
            self.stop()
            raise MoveError(f"{', '.join(target)}: {error}") from error
        arrived = self.read()
        check_arrived(self.axes, target, arrived)
        return arrived

    def acquire(self, mode: str, over: Over = None) -> Record:
        channels = check_over(self.axes, self.modes, mode, over).channels
        begun = time.time()
        readings = self._wait(self._measured, mode)
        data = {n: np.array(readings[n]["value"]) for n in channels}
        dims = {n: tuple(f"axis{i}" for i in range(v.ndim)) for n, v in data.items()}
        return Record(data, dims, dict(channels), {}, self.read(), begun, time.time())

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._halted(), self._loop).result(2.0 * STOP_S)

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> "OphydAsync":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _wait(self, verb: Callable, *arguments) -> Any:
        """What a coroutine of the loop returns."""
        if self._loop.is_closed():
            raise LinkError("it was closed")
        future = asyncio.run_coroutine_threadsafe(self._within(verb(*arguments)), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Aborted("it was stopped") from None
        except InstrumentError:
            raise
        except Exception as error:
            reason = str(error) or f"no answer within {self._timeout_s:g} s"
            raise LinkError(f"{type(error).__name__}: {reason}") from error

    async def _within(self, coroutine: Coroutine) -> Any:
        self._task = asyncio.current_task()
        return await asyncio.wait_for(coroutine, self._timeout_s)

    async def _connected(self) -> None:
        devices = [*self._movables.values(), *self._detectors.values()]
        await asyncio.gather(*(device.connect() for device in devices))
        for name, mode in self.modes.items():
            keys = await self._detectors[name].describe()
            for channel, unit in mode.channels.items():
                if channel not in keys:
                    raise NotReady(f"{name}: {unknown_name('channel', channel, keys)}")
                stated_unit = keys[channel].get("units") or unit
                if stated_unit != unit:
                    raise NotReady(f"{name}: {channel} comes in {stated_unit}, not in {unit}")

    async def _located(self) -> dict[str, float]:
        locations = await asyncio.gather(*(device.locate() for device in self._movables.values()))
        places = zip(self._movables, locations, strict=True)
        return {n: float(place["readback"]) * self._scales[n] for n, place in places}

    async def _sent(self, target: dict[str, float]) -> None:
        wanted = {n: value / self._scales[n] for n, value in target.items()}
        for name, value in wanted.items():
            device = self._movables[name]
            try:
                if hasattr(device, "check_value"):  # limits of its own
                    await device.check_value(value)
            except Exception as error:
                raise LimitError(f"{name} = {target[name]:g}: {error}") from error
        try:
            async with asyncio.TaskGroup() as group:  # when one fails the others are given up
                for name, value in wanted.items():
                    group.create_task(self._set(name, value))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _set(self, name: str, value: float) -> None:
        await self._movables[name].set(value)

    async def _measured(self, mode: str) -> dict[str, dict[str, Any]]:
        device = self._detectors[mode]
        if hasattr(device, "trigger"):
            await device.trigger()
        return await device.read()

    async def _halted(self) -> None:
        """A device that is stopped before it is sent off would go: no verb is left when it is."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=STOP_S)
        stops = [device.stop for device in self._movables.values() if hasattr(device, "stop")]
        await asyncio.gather(*(stop(success=False) for stop in stops), return_exceptions=True)
