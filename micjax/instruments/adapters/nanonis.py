"""Nanonis (SPECS) over TCP: position, bias, set-point, signals, spectra over the bias, and frames.

One connection for everything that blocks, and a new one on another port to stop it, since a command
that blocks blocks its connection.
"""

import contextlib
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from micjax.core.names import unknown_name
from micjax.instruments.adapters import nanonis_wire as wire
from micjax.instruments.arrival import check_arrived
from micjax.instruments.base import (
    Aborted,
    Axis,
    Frame,
    InstrumentError,
    LimitError,
    LinkError,
    Mode,
    NotReady,
    Over,
    Record,
    check_over,
    check_target,
)

Ends = tuple[float, float]

START, STOP = 0, 1  # actions of a scan
UP, FORWARD = 1, 1
TIME_PER_LINE = 2  # what stays when the size of a frame changes
POLL_MS = 200


class Nanonis:
    """A Nanonis controller.

    **Arguments:**

    - `ports`: of the connection, and another one to stop it.
    - `x`, `y`, `bias`: where they may be, m and V. The controller's own limits hold as well.
    - `setpoint`: of the feedback, in `setpoint_unit`; without ends there is no such axis.
    - `rate`, `bias_step`: m/s of the tip, for what travel takes; the largest step of the bias, V.
    - `signals`: names of signals as the controller has them, "Current (A)".
    - `spectrum`: units of the channels of a spectrum by name; empty for none. It is refused where
        the bias that it sweeps, as the controller is set, is not allowed.
    - `spectrum_s`: what one takes. `timeout_s`: how long to wait for any answer.
    - `image`: names of the signals of a frame. It is scanned upwards, and what was measured on the
        way forward is taken. Continuous scanning has to be off.
    - `rows`: in which order the rows of a frame come, which the documents do not say: "scanned",
        the first one that was scanned first, or "top", from the top down. To see which it is, take
        a frame with something near one corner: what the controller shows at the top of its own
        image must have the largest `iy`.

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
        setpoint: Ends | None = None,
        setpoint_unit: str = "A",
        rate: float = math.inf,
        bias_step: float = math.inf,
        signals: Sequence[str] = ("Current (A)",),
        spectrum: Mapping[str, str] | None = None,
        spectrum_s: float = 1.0,
        image: Sequence[str] = (),
        rows: Literal["scanned", "top"] = "scanned",
        timeout_s: float = 30.0,
    ):
        self._host, self._ports, self._rows = host, ports, rows
        self._stopped = threading.Event()
        self.axes: Mapping[str, Axis] = {
            "x": Axis("m", *x, rate=rate, tol=1e-12),
            "y": Axis("m", *y, rate=rate, tol=1e-12),
            "bias": Axis("V", *bias, max_step=bias_step, tol=_rounding(bias), single=True),
        }
        if setpoint is not None:
            tol = _rounding(setpoint)
            self.axes["setpoint"] = Axis(setpoint_unit, *setpoint, tol=tol, single=True)
        self._link = wire.Link(host, ports[0], timeout_s)
        try:
            (names,) = self._link.call("Signals.NamesGet")
            for name in (*signals, *image):
                if name not in names:
                    raise NotReady(unknown_name("signal", name, names))
        except BaseException:
            self.close()  # there is one client a port
            raise
        self._signals = {_label(n)[0]: names.index(n) for n in signals}
        self._channels = {_label(n)[0]: names.index(n) for n in image}
        self.modes: Mapping[str, Mode] = {"signals": Mode("point", dict(map(_label, signals)))}
        if spectrum:
            self.modes["spectrum"] = Mode(
                "point", dict(spectrum), seconds=spectrum_s, sweeps=self._sweeps
            )
        if image:
            self.modes["image"] = Mode("frame", dict(map(_label, image)), seconds=_seconds)

    def read(self) -> dict[str, float]:
        x, y = self._link.call("FolMe.XYPosGet", 1)
        (bias,) = self._link.call("Bias.Get")
        readings = {"x": x, "y": y, "bias": bias}
        if "setpoint" in self.axes:
            (readings["setpoint"],) = self._link.call("ZCtrl.SetpntGet")
        return readings

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        target = check_target(self.axes, target)
        self._stopped.clear()
        if "x" in target or "y" in target:
            now = self.read() | target
            self._link.call("FolMe.XYPosSet", now["x"], now["y"], 1)
        if "bias" in target:
            self._link.call("Bias.Set", target["bias"])
        if "setpoint" in target:
            self._link.call("ZCtrl.SetpntSet", target["setpoint"])
        arrived = self.read()
        self._alive()
        check_arrived(self.axes, target, arrived)
        return arrived

    def acquire(self, mode: str, over: Over = None) -> Record:
        asked = check_over(self.axes, self.modes, mode, over)
        for name, ends in asked.swept().items():
            for end in ends:
                check_target(self.axes, {name: end})
        self._stopped.clear()
        begun = time.time()
        if isinstance(over, Frame):
            measured = self._image(over)
        else:
            measured = self._spectrum() if mode == "spectrum" else self._values()
        return Record(*measured, self.read(), begun, time.time())

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(InstrumentError):
            link = wire.Link(self._host, self._ports[1], 2.0)
            with contextlib.closing(link):
                for command, arguments in (
                    ("BiasSpectr.Stop", ()),
                    ("Scan.Action", (STOP, UP)),
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

    def _alive(self) -> None:
        if self._stopped.is_set():
            raise Aborted("it was stopped")

    def _sweeps(self) -> dict[str, Ends]:
        """Of a spectrum, as the controller is set now."""
        kind = ""
        with contextlib.suppress(InstrumentError):  # a release without segments does not know it
            (kind,) = self._link.call("BiasSpectr.MLSModeGet")
        if kind == "MLS":
            raise NotReady("a spectrum goes in segments, whose ends are not read: set it to Linear")
        return {"bias": self._link.call("BiasSpectr.LimitsGet")}

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
        self._alive()  # the half of one is none
        if len(labels) != len(rows) or not len(rows):
            raise LinkError(f"a spectrum of {len(rows)} rows with the names {labels}")
        (swept, unit), *channels = map(_label, labels)
        recorded = {name: row for (name, _), row in zip(channels, rows[1:], strict=True)}
        units = self.modes["spectrum"].channels
        if missing := sorted(set(units) - set(recorded)):
            raise NotReady(f"the spectrum has {sorted(recorded)}, and no {', '.join(missing)}")
        data = {name: recorded[name] for name in units}
        return data, dict.fromkeys(data, (swept,)), dict(units), {swept: (rows[0], unit)}

    def _image(self, frame: Frame):
        self._prepare(frame)
        self._link.call("Scan.Action", START, UP)
        self._wait()
        data = {name: self._grabbed(name, frame) for name in self._channels}
        coords = {}
        if frame.angle == 0.0:
            points = frame.points()
            coords = {"y": (points[:, 0, 1], "m"), "x": (points[0, :, 0], "m")}
        return data, dict.fromkeys(data, ("y", "x")), dict(self.modes["image"].channels), coords

    def _prepare(self, frame: Frame) -> None:
        """What the controller cannot do it changes without a word: so all of it is read back."""
        if frame.dwell == 0.0:
            raise LimitError("image takes a dwell, in s a pixel")
        (ny, nx), channels = frame.shape, sorted(self._channels.values())
        line_s = frame.dwell * nx
        speed = frame.size[0] / line_s
        angle = -math.degrees(frame.angle)  # theirs is clockwise
        self._link.call("Scan.FrameSet", *frame.center, *frame.size, angle)
        self._link.call("Scan.BufferSet", channels, nx, ny)
        self._link.call("Scan.SpeedSet", speed, speed, line_s, line_s, TIME_PER_LINE, 1.0)

        x, y, width, height, angle = self._link.call("Scan.FrameGet")
        recorded, nx, ny = self._link.call("Scan.BufferGet")
        _, _, line_s, *_ = self._link.call("Scan.SpeedGet")
        accepted = Frame((x, y), (width, height), (ny, nx), -math.radians(angle), line_s / nx)
        if sorted(recorded) != channels:
            raise LimitError(f"it would record the channels {recorded}, not {channels}")
        if not _alike(accepted, frame):
            raise LimitError(f"it would take {accepted}, not {frame}")

    def _wait(self) -> None:
        """For the end of the scan, which a stop brings about even if it came before the start."""
        running = True
        while running:
            if self._stopped.is_set():
                self._link.call("Scan.Action", STOP, UP)
            self._link.call("Scan.WaitEndOfScan", POLL_MS)
            (running,) = self._link.call("Scan.StatusGet")
        self._alive()

    def _grabbed(self, name: str, frame: Frame) -> np.ndarray:
        channel = self._channels[name]
        label, rows, direction = self._link.call("Scan.FrameDataGrab", channel, FORWARD)
        # some releases number channels by the slots of their signals manager
        if _label(label)[0] != name or rows.shape != frame.shape:
            raise LinkError(f"{label} {rows.shape} came for {name} {frame.shape}")
        upwards = self._rows == "scanned" and direction == UP
        return rows if upwards else rows[::-1]


def _rounding(ends: Ends) -> float:
    """Of what is float32 on the wire."""
    return 1e-6 * max(abs(end) for end in ends)


def _seconds(frame: Frame) -> float:
    """There and back along every line."""
    return 2.0 * frame.dwell * frame.shape[0] * frame.shape[1]


def _alike(frame: Frame, other: Frame) -> bool:
    """Within a tenth of a pixel, and a thousandth of the dwell."""
    if frame.shape != other.shape or not math.isclose(frame.dwell, other.dwell, rel_tol=1e-3):
        return False
    pixel = min(other.size[0] / other.shape[1], other.size[1] / other.shape[0])
    return np.allclose(frame.points(), other.points(), rtol=0.0, atol=0.1 * pixel)


def _label(text: str) -> tuple[str, str]:
    """ "Current (A)" -> ("Current", "A")."""
    name, _, unit = text.rpartition(" (")
    return (name, unit.rstrip(")")) if name else (text, "")
