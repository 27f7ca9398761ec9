"""Servers on this machine that stand for instruments: rehearse without one, with every fault."""

import contextlib
import dataclasses
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from micjax.instruments.adapters import nanonis_wire as wire

SIGNALS = ("Current (A)", "Bias (V)", "Z (m)")


@dataclasses.dataclass
class Faults:
    """What goes wrong, by command.

    **Arguments:**

    - `fragment`: send so many bytes at a time, `pause_s` apart.
    - `error`: answer with this text; `bare`: and without results.
    - `hang`: never answer. `drop`: close in the middle of an answer.
    - `wrong_size`, `wrong_name`: answer with a header that is not true.
    - `stuck`: accept positions and frames and keep the old ones.
    """

    fragment: int = 0
    pause_s: float = 1e-5
    error: dict[str, str] = dataclasses.field(default_factory=dict)
    bare: bool = True
    hang: set[str] = dataclasses.field(default_factory=set)
    drop: set[str] = dataclasses.field(default_factory=set)
    wrong_size: set[str] = dataclasses.field(default_factory=set)
    wrong_name: set[str] = dataclasses.field(default_factory=set)
    stuck: bool = False


def slope_m(x, y):
    """A surface without any symmetry."""
    return 1e-3 * x + 2e-3 * y + 1e-9 * np.cos(1e7 * x + 3e6 * y)


class Controller:
    """The state of a simulated Nanonis: a tip whose current falls off from (0, 0).

    **Arguments:**

    - `spectrum_s`, `scan_s`: what a spectrum and a frame take.
    - `reach_m`: how far the tip goes. `height_m`: z of the surface at x and y.
    """

    def __init__(
        self,
        spectrum_s: float = 0.0,
        reach_m: float = 1e-6,
        scan_s: float = 0.0,
        height_m: Callable = slope_m,
    ):
        self.xy, self.bias, self.setpoint = (0.0, 0.0), 0.1, 1e-10
        self.reach_m, self.spectrum_s, self.scan_s = reach_m, spectrum_s, scan_s
        self.height_m = height_m
        self.frame, self.buffer = (0.0, 0.0, 1e-7, 1e-7, 0.0), ([0], 128, 128)
        self.speed, self.direction, self.scans = (1e-7, 1e-7, 1.0, 1.0, 2, 1.0), 1, 0
        self.faults, self.asked, self.positions = Faults(), [], []
        self.sweep = (-1.0, 1.0)  # of the bias
        self._stopped, self._scan_stopped = threading.Event(), threading.Event()
        self._scan_end = 0.0

    def current_A(self, bias, x=None, y=None):
        """At the tip, or elsewhere."""
        x, y = self.xy if x is None else (x, y)
        return 1e-9 * bias * np.exp(-(x**2 + 2.0 * y**2) / self.reach_m**2)

    def _signal(self, index, x, y):
        if not 0 <= index < len(SIGNALS):
            raise ValueError(f"there is no signal {index}")
        bias = np.full_like(x, self.bias)
        return (self.current_A(bias, x, y), bias, self.height_m(x, y))[index]

    def answer(self, command: str, body: bytes) -> tuple:
        """The results of a command.

        **Raises:** `ValueError` with the text of the error block.
        """
        self.asked.append(command)
        if command not in wire.COMMANDS:
            raise ValueError(f"unknown command {command}")
        arguments, _ = wire.decode(wire.COMMANDS[command][0], body)
        verb = getattr(self, "_" + command.replace(".", "_"), None)
        if verb is None:
            raise ValueError(f"{command} is not simulated")
        return verb(*arguments)

    def _Util_VersionGet(self):
        return "Nanonis", "loopback", 14718, 14718

    def _Signals_NamesGet(self):
        return (list(SIGNALS),)

    def _Signals_ValGet(self, index, wait):
        return (float(self._signal(index, *np.array(self.xy))),)

    def _FolMe_XYPosSet(self, x, y, wait):
        self.positions.append((x, y))
        if max(abs(x), abs(y)) > self.reach_m:
            raise ValueError("the position is out of range")
        if not self.faults.stuck:
            self.xy = (x, y)
        return ()

    def _FolMe_XYPosGet(self, wait):
        return self.xy

    def _FolMe_Stop(self):
        return ()

    def _Bias_Set(self, bias):
        self.bias = bias
        return ()

    def _Bias_Get(self):
        return (self.bias,)

    def _ZCtrl_SetpntSet(self, setpoint):
        self.setpoint = setpoint
        return ()

    def _ZCtrl_SetpntGet(self):
        return (self.setpoint,)

    def _Scan_FrameSet(self, *frame):
        if not self.faults.stuck:
            self.frame = frame
        return ()

    def _Scan_FrameGet(self):
        return self.frame

    def _Scan_BufferSet(self, channels, pixels, lines):
        pixels = max(16, 16 * round(pixels / 16))
        self.buffer = ([int(c) for c in channels], pixels, lines)
        return ()

    def _Scan_BufferGet(self):
        return self.buffer

    def _Scan_SpeedSet(self, *speed):
        self.speed = speed
        return ()

    def _Scan_SpeedGet(self):
        return self.speed

    def _Scan_Action(self, action, direction):
        if action == 1:
            self._scan_stopped.set()
        elif action == 0:
            self._scan_stopped.clear()
            self.direction, self._scan_end = direction, time.monotonic() + self.scan_s
            self.scans += 1
        return ()

    def _Scan_StatusGet(self):
        running = time.monotonic() < self._scan_end and not self._scan_stopped.is_set()
        return (int(running),)

    def _Scan_WaitEndOfScan(self, timeout_ms):
        left_s = max(0.0, self._scan_end - time.monotonic())
        self._scan_stopped.wait(min(left_s, 1e-3 * timeout_ms))
        return *self._Scan_StatusGet(), ""

    def _Scan_FrameDataGrab(self, channel, forward):
        """Rows in the order in which they were scanned."""
        channels, nx, ny = self.buffer
        if channel not in channels or not forward:
            raise ValueError(f"channel {channel} is not recorded")
        x, y, width, height, angle = self.frame
        along = width * ((np.arange(nx) + 0.5) / nx - 0.5)
        up = height * ((np.arange(ny)[:, None] + 0.5) / ny - 0.5)
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))  # clockwise
        image = self._signal(channel, x + c * along + s * up, y - s * along + c * up)
        return SIGNALS[channel], image if self.direction else image[::-1], self.direction

    def _BiasSpectr_Start(self, get_data, basename):
        self._stopped.clear()
        if self._stopped.wait(self.spectrum_s):
            raise ValueError("the spectrum was stopped")
        there = np.linspace(*self.sweep, 11)
        bias = np.concatenate([there, there[::-1]])
        rows = np.stack([bias, self.current_A(bias)])
        return ["Bias calc (V)", "Current (A)"], rows, list(self.xy)

    def _BiasSpectr_LimitsGet(self):
        return self.sweep

    def _BiasSpectr_MLSModeGet(self):
        return ("Linear",)

    def _BiasSpectr_Stop(self):
        self._stopped.set()
        return ()


class _Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            while (header := self._received(wire.REQUEST.size)) is not None:
                name, size = wire.name_and_size(header)
                body = self._received(size) if size else b""
                if body is None or not self._answered(name, body):
                    return

    def _answered(self, name: str, body: bytes) -> bool:
        controller: Controller = self.server.controller
        faults = controller.faults
        if name in faults.hang:
            self.server.closing.wait()
            return False
        try:
            if name in faults.error:
                raise ValueError(faults.error[name])
            values, error = controller.answer(name, body), None
        except ValueError as fault:
            values, error = (), str(fault)
            if not faults.bare and name in faults.error:
                values = controller.answer(name, body)
        raw = wire.response(name, values, error)
        if name in faults.wrong_name:
            raw = b"Other.Command".ljust(32, b"\0") + raw[32:]
        if name in faults.wrong_size:
            raw = raw[:32] + (len(raw) - 40 - 3).to_bytes(4, "big") + raw[36:]
        if name in faults.drop:
            self.request.sendall(raw[: len(raw) // 2 + 8])
            return False
        step = faults.fragment or len(raw)
        for at in range(0, len(raw), step):
            self.request.sendall(raw[at : at + step])
            if faults.fragment:
                time.sleep(faults.pause_s)
        return True

    def _received(self, size: int) -> bytes | None:
        parts = b""
        while len(parts) < size:
            part = self.request.recv(size - len(parts))
            if not part:
                return None
            parts += part
        return parts


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True
    controller: Controller
    closing: threading.Event


@contextlib.contextmanager
def nanonis_server(
    make: Callable[[], Controller] = Controller,
) -> Iterator[tuple[Controller, tuple[int, int]]]:
    """A controller on 127.0.0.1, and its two ports.

    with nanonis_server() as (controller, ports):
        instrument = Nanonis("127.0.0.1", ports, x=(-1e-6, 1e-6), y=(-1e-6, 1e-6))
    """
    controller, closing, servers = make(), threading.Event(), []
    try:
        for _ in range(2):
            server = _Server(("127.0.0.1", 0), _Handler)
            server.controller, server.closing = controller, closing
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            servers.append(server)
        yield controller, tuple(server.server_address[1] for server in servers)
    finally:
        closing.set()
        for server in servers:
            server.shutdown()
            server.server_close()
