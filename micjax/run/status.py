"""How far an exploration, or any other journal of an instrument, has come."""

import os
import time
from typing import Any

from micjax.instruments.journal_reader import being_written, journal_lines, steps_of


def status(folder: str | os.PathLike) -> list[str]:
    """A few sentences about the journal in a folder, which may still be written to.

    **Raises:** `JournalError` where there is none.
    """
    lines = journal_lines(folder)
    steps = steps_of(lines)
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
        statements.append(f"Last: {done[-1].intent['mode']} at {_place(done[-1].result['at'])}.")
    waiting = [s for s in doubt if not (running and s is steps[-1])]
    for step in waiting:
        statements.append(
            f"In doubt: step {step.index}, {step.intent['mode']}, at {_place(step.intent['at'])}."
        )
    return statements


def _when(line: dict[str, Any]) -> float:
    return line.get("t1", line.get("time", 0.0))


def _place(at: dict[str, float]) -> str:
    return ", ".join(f"{n} = {v:.6g}" for n, v in at.items())


def _duration(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.1f} s"
    minutes = seconds / 60.0
    return f"{minutes:.1f} min" if minutes < 90.0 else f"{minutes / 60.0:.1f} h"
