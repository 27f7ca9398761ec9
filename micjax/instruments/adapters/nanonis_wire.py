"""The wire format of Nanonis (SPECS) over TCP, as a table of commands, and a connection.

    request   name[32] | size int32 | wants a response uint16 | 0 uint16 | arguments
    response  name[32] | size int32 | 4 bytes                 | results, then the error block:
              status uint32 (1 = error) | size int32 | text

Everything is big-endian. There is no number of the request, so a connection that once was out of
step stays so: whoever reads a wrong answer has to connect anew. An error may come with results or
without (the documents do not say); both are read. Results that a later release appends are skipped.
Source: the TCP protocol of release R5.1 (April 2025) as users have transcribed it.
"""

import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from micjax.instruments.base import InstrumentError, LinkError

REQUEST = struct.Struct(">32siHH")
RESPONSE = struct.Struct(">32siI")
LARGEST = 1 << 28  # bytes of a body; a larger size is none

# name: arguments, results. s: string, T[]: its length as int32, then the items, f[][]: rows and
# columns as int32, then the items, s[]: bytes and number as int32, then strings
COMMANDS: dict[str, tuple[str, str]] = {
    "Util.VersionGet": ("", "s s I I"),
    "Signals.NamesGet": ("", "s[]"),
    "Signals.ValGet": ("i I", "f"),
    "FolMe.XYPosSet": ("d d I", ""),
    "FolMe.XYPosGet": ("I", "d d"),
    "FolMe.Stop": ("", ""),
    "Bias.Set": ("f", ""),
    "Bias.Get": ("", "f"),
    "ZCtrl.SetpntSet": ("f", ""),
    "ZCtrl.SetpntGet": ("", "f"),
    "ZCtrl.Withdraw": ("I i", ""),
    "ZCtrl.StatusGet": ("", "H"),
    "Scan.Action": ("H I", ""),
    "Scan.StatusGet": ("", "I"),
    "Scan.FrameSet": ("f f f f f", ""),
    "Scan.FrameGet": ("", "f f f f f"),
    "Scan.BufferSet": ("i[] i i", ""),
    "Scan.BufferGet": ("", "i[] i i"),
    "Scan.SpeedSet": ("f f f f H f", ""),
    "Scan.SpeedGet": ("", "f f f f H f"),
    "Scan.WaitEndOfScan": ("i", "I s"),
    "Scan.FrameDataGrab": ("I I", "s f[][] I"),
    "BiasSpectr.Start": ("I s", "s[] f[][] f[]"),
    "BiasSpectr.Stop": ("", ""),
    "BiasSpectr.LimitsGet": ("", "f f"),
    "BiasSpectr.MLSModeGet": ("", "s"),
}


class WireError(ValueError):
    """Bytes that are not what the table says."""


class Reply(NamedTuple):
    """What came back: results, or the text of an error."""

    values: tuple[Any, ...]
    error: str | None


def encode(spec: str, values: Sequence[Any]) -> bytes:
    """Arguments in bytes."""
    kinds = spec.split()
    if len(kinds) != len(values):
        raise WireError(f"{len(values)} values for {spec!r}")
    return b"".join(_encoded(kind, value) for kind, value in zip(kinds, values, strict=True))


def decode(spec: str, body: bytes) -> tuple[tuple[Any, ...], int]:
    """Results, and how many bytes they took."""
    values, at = [], 0
    for kind in spec.split():
        value, at = _decoded(kind, body, at)
        values.append(value)
    return tuple(values), at


def request(name: str, *arguments: Any, respond: bool = True) -> bytes:
    """A command with its arguments."""
    body = encode(COMMANDS[name][0], arguments)
    return REQUEST.pack(name.encode("ascii"), len(body), int(respond), 0) + body


def response(name: str, values: Sequence[Any], error: str | None = None) -> bytes:
    """What a server answers; with an error and no values the results are left out."""
    results = encode(COMMANDS[name][1], values) if values or error is None else b""
    text = (error or "").encode()
    body = results + struct.pack(">Ii", int(error is not None), len(text)) + text
    return RESPONSE.pack(name.encode("ascii"), len(body), 0) + body


def name_and_size(header: bytes) -> tuple[str, int]:
    """Of a request or a response."""
    name, size = struct.unpack(">32si", header[:36])
    if not 0 <= size <= LARGEST:
        raise WireError(f"a body of {size} bytes")
    return name.rstrip(b"\0").decode("ascii", "replace"), size


def reply(name: str, body: bytes) -> Reply:
    """The body of a response.

    **Raises:** `WireError` where it is not what the table says.
    """
    if len(body) >= 8:
        status, size = struct.unpack_from(">Ii", body)
        if status == 1 and 8 + size == len(body):  # an error without results
            return Reply((), body[8:].decode("utf-8", "replace"))
    values, at = decode(COMMANDS[name][1], body)
    rest = body[at:]
    if len(rest) >= 8:
        status, size = struct.unpack_from(">Ii", rest)
        if 8 + size == len(rest):
            return Reply(values, rest[8:].decode("utf-8", "replace") if status else None)
        if rest[-8:] == bytes(8):  # no error, after results that the table does not know
            return Reply(values, None)
    raise WireError(
        f"{len(rest)} bytes are left of a body of {len(body)}, which are no error block"
    )


def _encoded(kind: str, value: Any) -> bytes:
    if kind == "s":
        text = value.encode()
        return struct.pack(">i", len(text)) + text
    if kind == "s[]":
        items = b"".join(_encoded("s", v) for v in value)
        return struct.pack(">ii", len(items), len(value)) + items
    if kind.endswith("[][]"):
        array = np.asarray(value, f">{kind[0]}4")
        return struct.pack(">ii", *array.shape) + array.tobytes()
    if kind.endswith("[]"):
        return struct.pack(f">i{len(value)}{kind[0]}", len(value), *value)
    return struct.pack(f">{kind}", value)


def _decoded(kind: str, body: bytes, at: int) -> tuple[Any, int]:
    if kind == "s":
        (size,), at = _unpacked(">i", body, at)
        raw, at = _taken(body, at, size)
        return raw.decode("utf-8", "replace"), at
    if kind == "s[]":
        (_, count), at = _unpacked(">ii", body, at)
        items = []
        for _ in range(count):
            item, at = _decoded("s", body, at)
            items.append(item)
        return items, at
    if kind.endswith("[][]"):
        (rows, columns), at = _unpacked(">ii", body, at)
        if rows < 0 or columns < 0:
            raise WireError(f"an array of {rows} by {columns}")
        raw, at = _taken(body, at, 4 * rows * columns)
        return np.frombuffer(raw, f">{kind[0]}4").reshape(rows, columns).astype(float), at
    if kind.endswith("[]"):
        (count,), at = _unpacked(">i", body, at)
        raw, at = _taken(body, at, 4 * count)
        return np.frombuffer(raw, f">{kind[0]}4").astype(float), at
    (value,), at = _unpacked(f">{kind}", body, at)
    return value, at


def _unpacked(layout: str, body: bytes, at: int) -> tuple[tuple, int]:
    raw, end = _taken(body, at, struct.calcsize(layout))
    return struct.unpack(layout, raw), end


def _taken(body: bytes, at: int, size: int) -> tuple[bytes, int]:
    if size < 0 or at + size > len(body):
        raise WireError(f"{size} bytes wanted at {at} of a body of {len(body)}")
    return body[at : at + size], at + size


class Link:
    """One connection: commands in turn. Once it is out of step it is closed and stays so.

    **Raises:** `LinkError` when there is nobody.
    """

    def __init__(self, host: str, port: int, timeout_s: float):
        self.name, self._timeout_s = f"{host}:{port}", timeout_s
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
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(request(command, *arguments))
            until = time.monotonic() + self._timeout_s  # of all of the answer, not of each part
            name, size = name_and_size(self._received(RESPONSE.size, until))
            body = self._received(size, until)
            if name != command:
                raise WireError(f"{command} was asked and {name!r} answered")
            values, error = reply(command, body)
        except (OSError, WireError) as error:
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

    def _received(self, size: int, until: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            left_s = until - time.monotonic()
            if left_s <= 0.0:
                raise TimeoutError(f"timed out after {len(parts)} of {size} bytes")
            self._socket.settimeout(left_s)
            part = self._socket.recv(size - len(parts))
            if not part:
                raise ConnectionError(f"closed after {len(parts)} of {size} bytes")
            parts += part
        return bytes(parts)
