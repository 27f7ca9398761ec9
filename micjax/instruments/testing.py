"""Servers on this machine that stand for instruments: rehearse without one, with every fault."""

import contextlib
import dataclasses
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from micjax.instruments import nanonis_wire as wire

SIGNALS = ("Current (A)", "Bias (V)", "Z (m)")


@dataclasses.dataclass
class Faults:
    """What goes wrong, by command.

    **Arguments:**

    - `fragment`: send so many bytes at a time.
    - `error`: answer with this text; `bare`: and without results.
    - `hang`: never answer. `drop`: close in the middle of an answer.
    - `wrong_size`, `wrong_name`: answer with a header that is not true.
    - `stuck`: accept positions and do not move.
    """

    fragment: int = 0
    error: dict[str, str] = dataclasses.field(default_factory=dict)
    bare: bool = True
    hang: set[str] = dataclasses.field(default_factory=set)
    drop: set[str] = dataclasses.field(default_factory=set)
    wrong_size: set[str] = dataclasses.field(default_factory=set)
    wrong_name: set[str] = dataclasses.field(default_factory=set)
    stuck: bool = False


class Controller:
    """The state of a simulated Nanonis: a tip whose current falls off from (0, 0)."""

    def __init__(self, spectrum_s: float = 0.0, reach_m: float = 1e-6):
        self.xy, self.bias, self.reach_m, self.spectrum_s = (0.0, 0.0), 0.1, reach_m, spectrum_s
        self.faults, self.asked, self.positions = Faults(), [], []
        self._stopped = threading.Event()

    def current_A(self, bias):
        x, y = self.xy
        return 1e-9 * bias * np.exp(-(x**2 + 2.0 * y**2) / self.reach_m**2)

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
        if not 0 <= index < len(SIGNALS):
            raise ValueError(f"there is no signal {index}")
        return ((self.current_A(self.bias), self.bias, 1e-9)[index],)

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

    def _Scan_Action(self, action, direction):
        return ()

    def _BiasSpectr_Start(self, get_data, basename):
        self._stopped.clear()
        if self._stopped.wait(self.spectrum_s):
            raise ValueError("the spectrum was stopped")
        bias = np.concatenate([np.linspace(-1.0, 1.0, 11), np.linspace(1.0, -1.0, 11)])
        rows = np.stack([bias, self.current_A(bias)])
        return ["Bias calc (V)", "Current (A)"], rows, list(self.xy)

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
        except ValueError as found:
            values, error = (), str(found)
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
                time.sleep(1e-5)
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
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
        yield controller, tuple(server.server_address[1] for server in servers)
    finally:
        closing.set()
        for server in servers:
            server.shutdown()
            server.server_close()
