"""An instrument that a human operates: for those which no program can drive."""

import contextlib
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
    LinkError,
    Mode,
    Over,
    Record,
    check_over,
    check_target,
)
from micjax.io import channels, read

Coords = dict[str, tuple[np.ndarray, str]]
Measured = tuple[np.ndarray, tuple[str, ...], Coords]


class Manual:
    """Says what to do, and asks what came of it.

    A move is confirmed by "ok" or by the value that was reached; a measurement is typed as numbers
    with blanks between them, or as the path of a file for `micjax.io.read`. An empty line or "stop"
    breaks it off. Where the axes are in the beginning is asked when it is needed.

    **Arguments:**

    - `axes`: each with a `tol`, within which a value that was reached is good.
    - `modes`: at a point. Their `seconds` are what the human takes: a guard waits 5 times as long.
    - `ask`, `say`: the terminal, or what stands for it.

    **Raises:** `ValueError` for an axis without `tol`, or a mode over a frame or a path.
    """

    def __init__(
        self,
        axes: Mapping[str, Axis],
        modes: Mapping[str, Mode],
        ask: Callable[[str], str] = input,
        say: Callable[[str], object] = print,
    ):
        check_tolerances(axes)
        for name, mode in modes.items():
            if mode.kind != "point":
                raise ValueError(f"{name} goes over a {mode.kind}; a human measures at a point")
        self.axes, self.modes = dict(axes), dict(modes)
        self._ask, self._say = ask, say
        self._at: dict[str, float] = {}  # what is known
        self._stopped = threading.Event()

    def read(self) -> dict[str, float]:
        for name, axis in self.axes.items():
            if name not in self._at:
                prompt = f"Where is {name}, in {axis.unit}?"
                self._at[name] = self._answer(prompt, lambda text, a=axis: _number(text, a.unit))
        return {name: self._at[name] for name in self.axes}

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        target = check_target(self.axes, target)
        self._alive()
        for name, value in target.items():
            self._at.pop(name, None)  # once the human begins it is no longer where it was
            self._at[name] = self._moved(name, value)
            check_arrived(self.axes, {name: value}, self._at)
        return self.read()

    def acquire(self, mode: str, over: Over = None) -> Record:
        wanted = check_over(self.axes, self.modes, mode, over).channels
        self._alive()
        at, begun = self.read(), time.time()
        data, dims, coords = {}, {}, {}
        for channel in wanted:
            data[channel], dims[channel], own = self._measured(mode, channel, coords)
            coords |= own
        return Record(data, dims, dict(wanted), coords, at, begun, time.time())

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(Exception):  # it is the last resort and must not raise
            self._say("STOP: leave everything as it is.")

    def resume(self) -> None:
        """Asks again after a stop; whoever calls it has looked at the instrument."""
        self._stopped.clear()

    def _alive(self) -> None:
        if self._stopped.is_set():
            raise Aborted("stop was called; look at the instrument, then call resume()")

    def _moved(self, name: str, value: float) -> float:
        unit = self.axes[name].unit

        def understood(text: str) -> float:
            return value if text.lower() == "ok" else _number(text, unit, "ok, ")

        prompt = f"Set {name} to {value:.6g} {unit}: ok, or what was reached in {unit}?"
        return self._answer(prompt, understood)

    def _measured(self, mode: str, channel: str, coords: Coords) -> Measured:
        unit = self.modes[mode].channels[channel]

        def understood(text: str) -> Measured:
            values = _numbers(text)
            if values is None:
                return _from_file(text, channel, unit, coords)
            return (values.reshape(()), (), {}) if len(values) == 1 else (values, ("step",), {})

        prompt = f"Measure {mode}: {channel} in {unit or 'no unit'}, numbers or a file?"
        return self._answer(prompt, understood)

    def _answer(self, prompt: str, understood: Callable[[str], Any]) -> Any:
        """What is understood of the answer; asks until something is."""
        while True:
            self._alive()
            try:
                text = self._ask(f"{prompt} ").strip()
            except EOFError as error:
                raise LinkError("nobody answers: the input has ended") from error
            self._alive()
            if text.lower() in ("", "stop"):
                raise Aborted(f"{prompt} The answer was {text!r}")
            try:
                return understood(text)
            except (OSError, ValueError, ImportError) as error:
                self._say(str(error))


def _numbers(text: str) -> np.ndarray | None:
    """Numbers with blanks between them; None for another text. A comma would be read in two ways.

    **Raises:** `ValueError` for numbers that are not finite.
    """
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        return None
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{text!r}: numbers have to be finite")
    return values


def _number(text: str, unit: str, others: str = "") -> float:
    values = _numbers(text)
    if values is None or len(values) != 1:
        raise ValueError(f"{text!r} is not understood: {others}a number in {unit}, or stop")
    return float(values[0])


def _from_file(path: str, channel: str, unit: str, coords: Coords) -> Measured:
    """The channel of a file, or its only one, over axes that fit those of the other channels.

    **Raises:** `ValueError` otherwise, and what `micjax.io.read` raises.
    """
    allowed = f"numbers in {unit or 'no unit'}, the path of a file, or stop"
    try:
        known = list(channels(path))
        if channel not in known and len(known) > 1:
            raise ValueError(f"{path}: {unknown_name('channel', channel, known)}")
        field = read(path, channel if channel in known else known[0])
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{error}; allowed are {allowed}") from error
    if field.unit != unit:
        raise ValueError(f"{path}: {field.name} is in {field.unit!r}, not in {unit!r}")
    own = {a.name: (np.array(a.values), a.unit) for a in field.axes}
    for name in set(own) & set(coords):
        if own[name][1] != coords[name][1] or not np.array_equal(own[name][0], coords[name][0]):
            raise ValueError(f"{path}: its {name} is not that of the other channels")
    return np.array(field.data), tuple(own), own
