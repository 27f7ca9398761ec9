"""`micjax watch RUN`: the live page of a campaign, from what lies on the disk.

It may be opened, closed and opened again while the campaign goes on in another process.
"""

import os
import pathlib
import tempfile
import webbrowser
from collections.abc import Mapping

import numpy as np

from micjax.active.campaign import ID, request_stop
from micjax.active.snapshot import STATE
from micjax.instruments import Record
from micjax.instruments.journal_reader import (
    LINES,
    being_written,
    journal_lines,
    record_of,
    steps_of,
)
from micjax.report.access import address_of, protected_server
from micjax.report.live import Curve, View, fill
from micjax.run.status import status

MOST = 3  # curves of the last measurement


class Folder:
    """The folder of a run as views, one whenever something has changed."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._seen: tuple | None = None

    def look(self) -> View | None:
        """**Raises:** `JournalError` where there is no journal."""
        now = (*(_changed(self.path / name) for name in (LINES, STATE)), being_written(self.path))
        if now == self._seen:
            return None
        self._seen = now
        return view_of(self.path)


def view_of(path: pathlib.Path) -> View:
    """What the page shows of a run."""
    lines = journal_lines(path)
    believed, statements = _believed(path / STATE), status(path)
    steps = [s for s in steps_of(lines) if s.measured]
    suggested = [p for line in lines if line["kind"] == "suggested" for p in line["points"]]
    if believed:
        names, units = believed["names"].tolist(), believed["units"].tolist()
    else:
        names = [n for n in (suggested[-1] if suggested else {}) if n != ID]
        known = steps[-1].intent.get("axis_units", {}) if steps else {}
        units = [known.get(n, "") for n in names]
    done = len(steps) + sum(line["kind"] == "unreachable" for line in lines)
    numeric = all(isinstance(p.get(n), int | float) for p in suggested for n in names)
    return View(
        title=str(path),
        said=statements,
        running=being_written(path),
        believed=believed,
        names=names,
        units=units,
        points=_numbers([s.result["at"] for s in steps], names),
        following=_numbers(suggested[done:] if numeric else [], names),
        last=_curves(record_of(path, steps[-1])) if steps else [],
    )


def serve(folder: str | os.PathLike, port: int, token: str, show: bool):
    """The server of the page, which has begun to listen; `server.run_until_shutdown()` waits.

    **Raises:** `JournalError` for a folder without a journal; `OSError` where the port is taken.
    """
    journal_lines(folder)
    server = protected_server(
        lambda document: fill(document, Folder(folder).look, lambda: request_stop(folder)),
        port,
        token,
    )
    if show:
        server.io_loop.add_callback(_show, server.io_loop, address_of(port, token))
    return server


def _show(loop, address: str) -> None:
    """Opens a browser. It is handed a file that only this user can read: the address itself, an
    argument of its process, could be read by all."""
    handle, name = tempfile.mkstemp(suffix=".html", prefix="micjax-")
    with os.fdopen(handle, "w") as file:
        file.write(f'<meta http-equiv="refresh" content="0; url={address}">')
    webbrowser.open(pathlib.Path(name).as_uri())
    loop.call_later(60.0, pathlib.Path(name).unlink, True)


def _changed(path: pathlib.Path) -> tuple[int, int]:
    try:
        known = path.stat()
    except FileNotFoundError:
        return 0, 0
    return known.st_mtime_ns, known.st_size


def _believed(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def _numbers(points: list[Mapping[str, float]], names: list[str]) -> np.ndarray:
    rows = [[float(p[n]) for n in names] for p in points]
    return np.asarray(rows, float).reshape(len(rows), len(names))


def _curves(record: Record) -> list[Curve]:
    curves = []
    for name, values in record.data.items():
        values = np.abs(values) if np.iscomplexobj(values) else np.asarray(values, float)
        if values.ndim != 1:
            continue
        (along,) = record.dims[name]
        where, unit = record.coords.get(along, (np.arange(values.size), ""))
        curves.append(
            Curve(np.asarray(where), values, _label(along, unit), _label(name, record.units[name]))
        )
    return curves[:MOST]


def _label(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name
