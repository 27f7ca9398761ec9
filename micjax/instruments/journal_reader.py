"""What a journal says, while it is written or later: its lines, steps and records."""

import dataclasses
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from micjax.instruments.base import Record
from micjax.instruments.chain import JournalError, is_locked, read_chained

LINES, RECORDS = "journal.jsonl", "records"


@dataclasses.dataclass(frozen=True)
class JournalStep:
    """A measurement as the journal has it; `result` is None while it is in doubt."""

    index: int
    intent: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def measured(self) -> bool:
        """Whether it has a record."""
        return self.result is not None and "failed" not in self.result


def journal_lines(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """All lines of the journal in a folder; it may still be written to.

    **Raises:** `JournalError` where there is none.
    """
    lines = read_chained(pathlib.Path(folder) / LINES).content
    if not lines or lines[0].get("kind") != "begin":
        raise JournalError(f"there is no journal of an instrument in {folder}")
    return lines


def being_written(folder: str | os.PathLike) -> bool:
    """Whether a process writes the journal in a folder."""
    return is_locked(pathlib.Path(folder) / LINES)


def steps_of(lines: list[dict[str, Any]]) -> list[JournalStep]:
    """The steps in their order."""
    results = {line["index"]: line for line in lines if line["kind"] == "result"}
    return [
        JournalStep(line["index"], line, results.get(line["index"]))
        for line in lines
        if line["kind"] == "intent"
    ]


def spent_of(lines: list[dict[str, Any]], each: tuple[float, float]) -> tuple[float, float]:
    """Seconds and dose of all that was done so far, where a guard has counted them; a step of which
    that is not known is taken for `each`."""
    results = {line["index"]: line for line in lines if line["kind"] == "result"}
    seconds = dose = 0.0
    for line in lines:
        seconds, dose = line.get("spent", (seconds, dose))
        result = results.get(line.get("index"), {})
        if line["kind"] == "intent" and not ("spent" in result or result.get("again")):
            seconds, dose = seconds + each[0], dose + each[1]
    return seconds, dose


def record_of(folder: pathlib.Path, step: JournalStep) -> Record:
    """The record of a step.

    **Raises:** `JournalError` if it has none, or its file is missing or another one.
    """
    result = step.result
    if not step.measured:
        raise JournalError(f"step {step.index} has no record")
    path = folder / result["file"]
    if not path.exists():
        raise JournalError(f"{path} is missing")
    if hashlib.sha256(path.read_bytes()).hexdigest() != result["sha256"]:
        raise JournalError(f"{path} is not the file that was written: its sha256 differs")
    try:
        with np.load(path) as arrays:
            data = {n: arrays[f"data/{n}"] for n in result["units"]}
            coords = {
                n: (arrays[f"coords/{n}"], unit) for n, unit in result["coordinate_units"].items()
            }
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise JournalError(f"{path}: {error}") from error
    return Record(
        data,
        {n: tuple(d) for n, d in result["dims"].items()},
        result["units"],
        coords,
        result["at"],
        result["t0"],
        result["t1"],
        result["meta"],
    )


def records(folder: str | os.PathLike) -> Iterator[tuple[JournalStep, Record]]:
    """All steps of a journal that have a record; it may still be written to."""
    folder = pathlib.Path(folder)
    for step in steps_of(journal_lines(folder)):
        if step.measured:
            yield step, record_of(folder, step)
