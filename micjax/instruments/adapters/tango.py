"""Devices of Tango: attributes as axes, attributes and commands as what can be measured."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping
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

POLL_S = 0.01
STOP_S = 2.0  # how long a stop waits for its answer


class Tango:
    """A device of Tango.

    **Arguments:**

    - `device`: its name, "lab/stage/1" or "tango://host:port/lab/stage/1#dbase=no".
    - `axes`: `{name: (attribute, axis, scale)}`: one unit of the attribute is `scale` SI units,
        1e-3 for mm. Limits lie within those of the attribute; the axis has a `tol`.
    - `modes`: `{name: (source, mode)}` of one channel at a point. The source is an attribute or a
        command which returns the data, or `(command, attribute)`: the command is executed, and the
        attribute is read when the device is no longer MOVING or RUNNING. A command lets no other in
        while it lasts, so only the last kind can be stopped on the way.
    - `stop`: the command which ends what goes on; None for a device without.
    - `timeout_s`: the longest that a move, a command or a measurement may take.

    The device is MOVING from when an attribute is written until it has arrived, as Tango has it.

    **Raises:** `LinkError` when there is nobody; `NotReady` for attributes, commands or units that
    the device has not; `LimitError` for limits wider than the attribute's; `ValueError` for an
    axis without `tol`, or a mode over a frame or a path or of several channels; `ImportError`
    without pytango.
    """

    def __init__(
        self,
        device: str,
        axes: Mapping[str, tuple[str, Axis, float]],
        modes: Mapping[str, tuple[str | tuple[str, str], Mode]],
        *,
        stop: str | None = "Stop",
        timeout_s: float = 60.0,
    ):
        self.axes: Mapping[str, Axis] = {n: axis for n, (_, axis, _) in axes.items()}
        self.modes: Mapping[str, Mode] = {n: mode for n, (_, mode) in modes.items()}
        check_tolerances(self.axes)
        for name, mode in self.modes.items():
            if mode.kind != "point" or len(mode.channels) != 1:
                raise ValueError(f"{name}: a mode of one channel at a point is wanted, not {mode}")
        self._tango = _tango()
        self._device, self._stop, self._timeout_s = device, stop, timeout_s
        self._attributes = {n: (attribute, scale) for n, (attribute, _, scale) in axes.items()}
        self._stopped = threading.Event()
        self._proxy = self._connected(timeout_s)
        self._commands = self._names(self._proxy.get_command_list)
        self._readable = self._names(self._proxy.get_attribute_list)
        for name in self.axes:
            self._check_limits(name)
        self._sources = {n: self._source(n, source) for n, (source, _) in modes.items()}
        if stop is not None and stop.lower() not in self._commands:
            raise NotReady(f"{device}: {unknown_name('command', stop, self._commands.values())}")

    def read(self) -> dict[str, float]:
        readings = {}
        for name, (attribute, scale) in self._attributes.items():
            value = self._ask(self._proxy.read_attribute, attribute).value
            if value is None:
                raise NotReady(f"{self._device}: {attribute} has no valid value")
            readings[name] = float(value) * scale
        return readings

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        target, sent = check_target(self.axes, target), []
        self._stopped.clear()
        try:
            for name, value in target.items():
                attribute, scale = self._attributes[name]
                self._ask(self._proxy.write_attribute, attribute, value / scale)
                sent.append(name)
            self._wait(("MOVING",), MoveError)
        except InstrumentError as error:
            refused = isinstance(error, LimitError)
            if not refused or sent:
                self.stop()  # what was written before goes no further
            if refused and sent:
                raise MoveError(f"{error}; {', '.join(sent)} had been sent before") from error
            raise
        arrived = self.read()
        check_arrived(self.axes, target, arrived)
        return arrived

    def acquire(self, mode: str, over: Over = None) -> Record:
        ((channel, unit),) = check_over(self.axes, self.modes, mode, over).channels.items()
        self._stopped.clear()
        begun, answer = time.time(), None
        command, attribute = self._sources[mode]
        if command is not None:
            answer = self._ask(self._proxy.command_inout, command)
        if attribute is not None:
            if command is not None:
                self._wait(("MOVING", "RUNNING"), InstrumentError)
            answer = self._ask(self._proxy.read_attribute, attribute).value
        values = self._numbers(attribute or command, answer)
        dims = tuple(f"axis{i}" for i in range(values.ndim))
        ended, at = time.time(), self.read()
        return Record({channel: values}, {channel: dims}, {channel: unit}, {}, at, begun, ended)

    def stop(self) -> None:
        self._stopped.set()
        if self._stop is not None:
            with contextlib.suppress(Exception):  # it is the last resort and must not raise
                self._connected(STOP_S).command_inout(self._stop)

    def _connected(self, timeout_s: float) -> Any:
        proxy = self._ask(self._tango.DeviceProxy, self._device)
        proxy.set_timeout_millis(int(1e3 * timeout_s))
        self._ask(proxy.ping)
        return proxy

    def _ask(self, verb: Callable, *arguments: Any) -> Any:
        request = " ".join(map(str, (self._device, *arguments)))
        try:
            return verb(*arguments)
        except TypeError as error:  # what pytango makes of a write once the device has gone
            raise LinkError(f"{request}: {error}; the state of the device is unknown") from error
        except self._tango.DevFailed as error:
            reason, text = error.args[0].reason, " ".join(error.args[0].desc.split())
            lost = self._tango.ConnectionFailed, self._tango.CommunicationFailed
            if isinstance(error, lost) or reason == "API_CantConnectToDevice":
                raise LinkError(f"{request}: {text}; the state of the device is unknown") from error
            kind = LimitError if reason == "API_WAttrOutsideLimit" else InstrumentError
            raise kind(f"{request}: {text}") from error

    def _wait(self, busy: tuple[str, ...], late: type[InstrumentError]) -> None:
        until = time.monotonic() + self._timeout_s
        while (state := str(self._ask(self._proxy.state))) in busy:
            if self._stopped.wait(POLL_S):
                break
            if time.monotonic() > until:
                self.stop()
                raise late(f"{self._device} is still {state} after {self._timeout_s:g} s")
        if self._stopped.is_set():
            raise Aborted(f"{self._device} was stopped")
        if state == "FAULT":
            raise late(f"{self._device} is in FAULT: {self._ask(self._proxy.status)}")

    def _names(self, verb: Callable) -> dict[str, str]:
        return {n.lower(): n for n in self._ask(verb)}  # Tango does not tell their cases apart

    def _check_limits(self, name: str) -> None:
        axis, (attribute, scale) = self.axes[name], self._attributes[name]
        if not (math.isfinite(scale) and scale != 0.0):
            raise ValueError(f"{name}: one unit of {attribute} cannot be {scale} {axis.unit}")
        config = self._config(name, attribute)
        if str(config.writable) == "READ":
            raise NotReady(f"{name}: {attribute} can only be read")
        ends = (_end(config.min_value, -math.inf), _end(config.max_value, math.inf))
        lo, hi = sorted(scale * end for end in ends)
        for end, good in ((axis.lo, axis.lo >= lo), (axis.hi, axis.hi <= hi)):
            if not good and not any(math.isclose(end, known) for known in (lo, hi)):
                raise LimitError(
                    f"{name} = {end:g} {axis.unit} is outside {lo:g} to {hi:g} {axis.unit}, the "
                    f"limits of {attribute}"
                )

    def _source(self, name: str, source: str | tuple[str, str]) -> tuple[str | None, str | None]:
        """The command and the attribute of a mode, one of which it may not have."""
        if isinstance(source, tuple):
            command, attribute = source
        elif source.lower() in self._readable:
            command, attribute = None, source
        else:
            command, attribute = source, None
        if command is not None and command.lower() not in self._commands:
            known = [*self._commands.values(), *self._readable.values()]
            raise NotReady(f"{name}: {unknown_name('command or attribute', command, known)}")
        if attribute is not None:
            (unit,), stated_unit = (
                self.modes[name].channels.values(),
                self._config(name, attribute).unit,
            )
            if stated_unit not in ("", "No unit", unit):
                raise NotReady(f"{name}: {attribute} comes in {stated_unit}, not in {unit}")
        return command, attribute

    def _config(self, name: str, attribute: str) -> Any:
        if attribute.lower() not in self._readable:
            raise NotReady(
                f"{name}: {unknown_name('attribute', attribute, self._readable.values())}"
            )
        return self._ask(self._proxy.get_attribute_config, attribute)

    def _numbers(self, source: str, answer: Any) -> np.ndarray:
        with contextlib.suppress(ValueError):  # rows that are not equally long
            values = np.array(answer)
            if values.dtype.kind in "biufc":
                return values
        raise InstrumentError(f"{self._device}: {source} gave {answer!r:.60}; numbers are wanted")


def _end(text: str, unknown: float) -> float:
    """A limit of an attribute, which is a text that may say that there is none."""
    try:
        return float(text)
    except ValueError:
        return unknown


def _tango() -> Any:
    try:
        import tango
    except ImportError as error:
        raise ImportError("Tango wants pytango: pip install 'micjax[tango]'") from error
    return tango
