"""How far an exploration, or any other journal of an instrument, has come."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from micjax.active.snapshot import told_in
from micjax.instruments.journal_reader import being_written, journal_lines, steps_of


def status(folder: str | os.PathLike) -> list[str]:
    """A few sentences about the journal in a folder, which may still be written to.

    **Raises:** `JournalError` where there is none.
    """
    lines = journal_lines(folder)
    steps, categories = steps_of(lines), categories_of(lines)
    done = [s for s in steps if s.measured]
    doubt = [s for s in steps if s.result is None]
    running = being_written(folder)
    ago = _duration(time.time() - max(_when(line) for line in lines))
    statements = [
        f"{folder}: {'being measured' if running else 'nothing is being measured'}; "
        f"the last line of its journal is {ago} old.",
        f"{len(done)} measurements in {_duration(_when(lines[-1]) - lines[0]['time'])}, "
        f"{sum(line['kind'] == 'unreachable' for line in lines)} points could not be reached.",
    ]
    if done:
        statements.append(
            f"Last: {done[-1].intent['mode']} at {_place(done[-1].result['at'], categories)}."
        )
    statements += told_in(folder)
    waiting = [s for s in doubt if not (running and s is steps[-1])]
    for step in waiting:
        place = _place(step.intent["at"], categories)
        statements.append(f"In doubt: step {step.index}, {step.intent['mode']}, at {place}.")
    return statements


def _when(line: dict[str, Any]) -> float:
    return line.get("t1", line.get("time", 0.0))


def categories_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The names along the axes of an exploration that have some: its instrument has the numbers of
    them. Other journals have none."""
    axes = lines[0].get("configuration", {}).get("axes")
    each = axes.items() if isinstance(axes, Mapping) else ()
    named = {n: axis.get("categories") for n, axis in each if isinstance(axis, Mapping)}
    return {n: list(given) for n, given in named.items() if given}


def _place(at: Mapping[str, float], categories: Mapping[str, Sequence[Any]]) -> str:
    named = {
        n: str(categories[n][round(v)]) if n in categories else f"{v:.6g}" for n, v in at.items()
    }
    return ", ".join(f"{n} = {v}" for n, v in named.items())


def _duration(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.1f} s"
    minutes = seconds / 60.0
    return f"{minutes:.1f} min" if minutes < 90.0 else f"{minutes / 60.0:.1f} h"
