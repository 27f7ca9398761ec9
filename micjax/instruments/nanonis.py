"""Nanonis (SPECS) over TCP: position, bias, signals, and spectra over the bias.

One connection for everything that blocks, and a new one on another port to stop it, since a command
that blocks blocks its connection. Frames are not taken yet: the order of the rows in what the
controller returns has to be seen on a real one first.
"""

import contextlib
import math
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from micjax.instruments import nanonis_wire as wire
from micjax.instruments.base import (
    Axis,
    InstrumentError,
    LinkError,
    Mode,
    NotReady,
    Over,
    Record,
    check_over,
    check_target,
    nearest,
)

Ends = tuple[float, float]


class Link:
    """One connection: commands in turn. Once it is out of step it is closed and stays so.

    **Raises:** `LinkError` when there is nobody.
    """

    def __init__(self, host: str, port: int, timeout_s: float):
        self.name = f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise LinkError(f"{self.name}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._broken: str | None = None

    def call(self, command: str, *arguments: Any) -> tuple[Any, ...]:
        """Sends a command and waits for what it returns.

        **Raises:** `InstrumentError` with what the controller says; `LinkError` if it does not
        answer, or with something else.
        """
        if self._broken is not None:
            raise LinkError(f"{self.name} was lost ({self._broken}); connect anew")
        try:
            self._socket.sendall(wire.request(command, *arguments))
            name, size = wire.name_and_size(self._received(wire.RESPONSE.size))
            body = self._received(size)
            if name != command:
                raise wire.WireError(f"{command} was asked and {name!r} answered")
            values, error = wire.reply(command, body)
        except (OSError, wire.WireError) as error:
            self._broken = f"{command}: {error or type(error).__name__}"
            self.close()
            raise LinkError(f"{self.name}, {self._broken}") from error
        except BaseException:  # Ctrl-C while it waits: the answer would be taken for the next one
            self._broken = f"{command} was broken off"
            self.close()
            raise
        if error is not None:
            raise InstrumentError(f"{command}: {error}")
        return values

    def close(self) -> None:
        self._socket.close()

    def _received(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            if not part:
                raise ConnectionError(f"closed after {len(parts)} of {size} bytes")
            parts += part
        return bytes(parts)


class Nanonis:
    """A Nanonis controller.

    **Arguments:**

    - `ports`: of the connection, and another one to stop it.
    - `x`, `y`, `bias`: where they may be, m and V. The controller's own limits hold as well.
    - `rate`, `bias_step`: m/s of the tip, for what travel takes; the largest step of the bias, V.
    - `signals`: names of signals as the controller has them, "Current (A)".
    - `spectrum`: units of the channels of a spectrum by name; empty for none.
    - `spectrum_s`: what one takes. `timeout_s`: how long to wait for any answer.

    **Raises:** `LinkError` when there is nobody; `NotReady` for a signal that does not exist.
    """

    def __init__(
        self,
        host: str,
        ports: tuple[int, int] = (6501, 6502),
        *,
        x: Ends,
        y: Ends,
        bias: Ends = (-10.0, 10.0),
        rate: float = math.inf,
        bias_step: float = math.inf,
        signals: Sequence[str] = ("Current (A)",),
        spectrum: Mapping[str, str] | None = None,
        spectrum_s: float = 1.0,
        timeout_s: float = 30.0,
    ):
        self._host, self._ports = host, ports
        # float64 on the wire; the bias is float32
        rounding = 1e-6 * max(abs(end) for end in bias)
        self.axes: Mapping[str, Axis] = {
            "x": Axis("m", *x, rate=rate, tol=1e-12),
            "y": Axis("m", *y, rate=rate, tol=1e-12),
            "bias": Axis("V", *bias, max_step=bias_step, tol=rounding),
        }
        self._link = Link(host, ports[0], timeout_s)
        try:
            (names,) = self._link.call("Signals.NamesGet")
            for name in signals:
                if name not in names:
                    raise NotReady(nearest("signal", name, names))
        except BaseException:
            self.close()  # there is one client a port
            raise
        self._signals = {_label(n)[0]: names.index(n) for n in signals}
        self.modes: Mapping[str, Mode] = {"signals": Mode("point", dict(map(_label, signals)))}
        if spectrum:
            self.modes["spectrum"] = Mode("point", dict(spectrum), seconds=spectrum_s)

    def read(self) -> dict[str, float]:
        x, y = self._link.call("FolMe.XYPosGet", 1)
        (bias,) = self._link.call("Bias.Get")
        return {"x": x, "y": y, "bias": bias}

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        target = check_target(self.axes, target)
        if "x" in target or "y" in target:
            now = self.read() | target
            self._link.call("FolMe.XYPosSet", now["x"], now["y"], 1)
        if "bias" in target:
            self._link.call("Bias.Set", target["bias"])
        return self.read()

    def acquire(self, mode: str, over: Over = None) -> Record:
        check_over(self.axes, self.modes, mode, over)
        begun = time.time()
        measured = self._spectrum() if mode == "spectrum" else self._values()
        return Record(*measured, self.read(), begun, time.time())

    def stop(self) -> None:
        with contextlib.suppress(InstrumentError):
            link = Link(self._host, self._ports[1], 2.0)
            with contextlib.closing(link):
                for command, arguments in (
                    ("BiasSpectr.Stop", ()),
                    ("Scan.Action", (1, 0)),
                    ("FolMe.Stop", ()),
                ):
                    with contextlib.suppress(InstrumentError):
                        link.call(command, *arguments)

    def close(self) -> None:
        self._link.close()

    def __enter__(self) -> "Nanonis":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _values(self):
        units = self.modes["signals"].channels
        data = {
            name: np.array(self._link.call("Signals.ValGet", index, 1)[0])
            for name, index in self._signals.items()
        }
        return data, dict.fromkeys(data, ()), dict(units), {}

    def _spectrum(self):
        """Row 0 is the bias, the other rows are the channels."""
        labels, rows, _ = self._link.call("BiasSpectr.Start", 1, "")
        if len(labels) != len(rows) or not len(rows):
            raise LinkError(f"a spectrum of {len(rows)} rows with the names {labels}")
        (swept, unit), *channels = map(_label, labels)
        found = {name: row for (name, _), row in zip(channels, rows[1:], strict=True)}
        units = self.modes["spectrum"].channels
        if missing := sorted(set(units) - set(found)):
            raise NotReady(f"the spectrum has {sorted(found)}, and no {', '.join(missing)}")
        data = {name: found[name] for name in units}
        return data, dict.fromkeys(data, (swept,)), dict(units), {swept: (rows[0], unit)}


def _label(text: str) -> tuple[str, str]:
    """ "Current (A)" -> ("Current", "A")."""
    name, _, unit = text.rpartition(" (")
    return (name, unit.rstrip(")")) if name else (text, "")
