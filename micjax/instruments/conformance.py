"""What every adapter has to do, as one public function: `check_instrument`.

It moves and measures: run it on a twin, or on an instrument that may go anywhere within its axes.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from micjax.instruments.base import (
    Frame,
    Instrument,
    InstrumentError,
    LimitError,
    Mode,
    Over,
    Record,
    layers,
)

UNITS = {"m", "rad", "V", "A", "s", "Hz", "K", "C", "N", "Pa", "W", "J", "kg", "T", "F", "ohm", ""}
STOPPED_WITHIN_S = 5.0
SHAPES = ((3, 5), (16, 32))  # of frames; some controllers take multiples of 16 only


class ConformanceError(AssertionError):
    """Says everything that an instrument does not do as it should."""


class Conformance(NamedTuple):
    """What was looked at, and what is wrong with it ("" if nothing is, "skipped" with a reason)."""

    rows: list[tuple[str, str]]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {fault or 'good'}" for name, fault in self.rows)


def check_instrument(instrument: Any) -> Conformance:
    """Looks at all that the protocol promises.

    **Returns:** one row for each promise.

    **Raises:** `ConformanceError` with all faults, if there are any.
    """
    begun = dict(instrument.read()) if isinstance(instrument, Instrument) else {}
    rows = []
    for check in CHECKS:
        try:
            fault = check(instrument) or ""
        except Exception as error:  # whatever it raises is a fault of its own
            fault = f"raised {type(error).__name__}: {error}"
        rows.append((check.__name__.replace("_", " "), fault))
    if begun:
        instrument.move(begun)
    conformance = Conformance(rows)
    if any(fault and not fault.startswith("skipped") for _, fault in rows):
        raise ConformanceError(str(conformance))
    return conformance


# --- the promises: each returns what is wrong ----------------------------------------------------


def has_the_two_tables_and_four_verbs(instrument) -> str | None:
    if not isinstance(instrument, Instrument):
        wanted = ("axes", "modes", "read", "move", "acquire", "stop")
        missing = [n for n in wanted if not hasattr(instrument, n)]
        return f"has no {', '.join(missing)}"
    if not instrument.modes:
        return "there is nothing it can measure"
    return None


def axes_have_SI_units(instrument) -> str | None:
    wrong = {n: a.unit for n, a in instrument.axes.items() if a.unit not in UNITS}
    return f"axes in {wrong}; SI units and rad are {sorted(UNITS)}" if wrong else None


def reads_every_axis(instrument) -> str | None:
    readings = instrument.read()
    if set(readings) != set(instrument.axes):
        return f"reads {sorted(readings)}, its axes are {sorted(instrument.axes)}"
    wrong = {n: v for n, v in readings.items() if not math.isfinite(v)}
    return f"reads {wrong}" if wrong else None


def arrives_where_it_was_sent(instrument) -> str | None:
    """One axis after the other, to two places that are not symmetric: the others stay."""
    for name, axis in instrument.axes.items():
        for share in (0.3, 0.8):
            before, target = instrument.read(), axis.lo + share * (axis.hi - axis.lo)
            answered = instrument.move({name: target})
            readings = instrument.read()
            for n, wanted in (before | {name: target}).items():
                other = instrument.axes[n]
                limit = other.tol if math.isfinite(other.tol) else 1e-6 * (other.hi - other.lo)
                if not abs(readings[n] - wanted) <= limit:
                    return f"moved {name} to {target:g}; {n} is at {readings[n]:g}, not {wanted:g}"
            if set(answered) != set(readings):
                return f"move returned {sorted(answered)} and not all readbacks"
    return None


def refuses_what_is_out_of_range(instrument) -> str | None:
    for name, axis in instrument.axes.items():
        beyond = max(axis.hi - axis.lo, 1e-12)
        for value in (axis.hi + beyond, axis.lo - beyond, math.nan, math.inf):
            fault = _unmoved(instrument, {name: value})
            if fault:
                return fault
    return _unmoved(instrument, {"no such axis": 0.0})


def _unmoved(instrument, target) -> str | None:
    before = instrument.read()
    try:
        instrument.move(target)
    except LimitError:
        pass
    except Exception as error:
        return f"move({target}) raised {type(error).__name__}, not LimitError"
    else:
        return f"move({target}) was not refused"
    after = instrument.read()
    same = all(math.isclose(after[n], v, rel_tol=1e-6, abs_tol=1e-15) for n, v in before.items())
    return None if same else f"move({target}) was refused, and yet it moved"


def refuses_unknown_modes(instrument) -> str | None:
    try:
        instrument.acquire("no such mode")
    except InstrumentError:
        return None
    return "acquire('no such mode') was not refused"


def records_have_what_they_say(instrument) -> str | None:
    """Channels and units of the table, the time, and copies of the data."""
    for name, mode in instrument.modes.items():
        begun = time.time()
        over, record = _measured(instrument, name)
        fault = _as_said(record, mode, begun)
        if fault:
            return f"{name}: {fault}"
        kept = {n: np.array(v) for n, v in record.data.items()}
        instrument.acquire(name, over)
        if any(not np.array_equal(record.data[n], v, equal_nan=True) for n, v in kept.items()):
            return f"{name}: a second measurement changed the first record"
    return None


def _as_said(record: Record, mode: Mode, begun: float) -> str | None:
    if dict(record.units) != dict(mode.channels):
        return f"measured {dict(record.units)}, the table says {dict(mode.channels)}"
    if not (begun - 1.0 <= record.t0 <= record.t1 <= time.time() + 1.0):
        return f"it says it was measured from {record.t0} to {record.t1}"
    return None


def frames_are_rows_of_y_and_columns_of_x(instrument) -> str | None:
    """A frame that is not square, and the same pixels one by one where that can be measured."""
    frames = [n for n, m in instrument.modes.items() if m.kind == "frame"]
    if not frames:
        return "skipped: it takes no frames"
    frame, record = _measured(instrument, frames[0])
    for name, values in record.data.items():
        if np.shape(values)[:2] != frame.shape:
            return f"{name} is {np.shape(values)} for a frame of {frame.shape}"
    paths = [
        n
        for n, m in instrument.modes.items()
        if m.kind == "path" and set(m.channels) & set(record.data)
    ]
    if not paths or not instrument.modes[frames[0]].repeatable:
        return None
    row = instrument.acquire(paths[0], frame.points()[1])
    for name in set(row.data) & set(record.data):
        size = np.ptp(record.data[name])
        if not np.allclose(row.data[name], record.data[name][1], atol=0.2 * size):
            return f"{name}: the second row of a frame is not what lies along it"
    return None


def stops_from_another_thread(instrument) -> str | None:
    """A measurement that is stopped ends soon, by an error or with its record."""
    modes = instrument.modes
    name = max(modes, key=lambda n: modes[n].cost(_overs(instrument, modes[n])[0])[0])
    ended = threading.Event()

    def body():
        try:
            _measured(instrument, name)
        except Exception:  # how it ends is not looked at here
            pass
        finally:
            ended.set()

    threading.Thread(target=body, daemon=True).start()
    time.sleep(0.05)
    instrument.stop()
    instrument.stop()  # any number of times
    if not ended.wait(STOPPED_WITHIN_S):
        return f"{name} went on for {STOPPED_WITHIN_S:g} s after stop()"
    for layer in layers(instrument):
        if hasattr(layer, "resume"):
            layer.resume()
    return None


CHECKS: tuple[Callable[[Instrument], str | None], ...] = (
    has_the_two_tables_and_four_verbs,
    axes_have_SI_units,
    reads_every_axis,
    arrives_where_it_was_sent,
    refuses_what_is_out_of_range,
    refuses_unknown_modes,
    records_have_what_they_say,
    frames_are_rows_of_y_and_columns_of_x,
    stops_from_another_thread,
)


def _measured(instrument: Instrument, name: str) -> tuple[Over, Record]:
    """What it goes over, the first that it does not refuse, and what it has measured there."""
    *others, last = _overs(instrument, instrument.modes[name])
    for over in others:
        with contextlib.suppress(LimitError):
            return over, instrument.acquire(name, over)
    return last, instrument.acquire(name, last)


def _overs(instrument: Instrument, mode: Mode) -> list[Over]:
    if mode.kind == "point":
        return [None]
    frames = [_frame(instrument, shape) for shape in SHAPES]
    return frames if mode.kind == "frame" else [frames[0].points()[1]]


def _frame(instrument: Instrument, shape: tuple[int, int]) -> Frame:
    """Not square, neither in pixels nor in metres, and not in the middle."""
    x, y = instrument.axes["x"], instrument.axes["y"]
    width, height = x.hi - x.lo, y.hi - y.lo
    return Frame(
        (x.lo + 0.45 * width, y.lo + 0.6 * height), (0.6 * width, 0.3 * height), shape, dwell=1e-3
    )
