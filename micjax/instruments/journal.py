"""A journal that survives `kill -9`: what was going to be measured, and what came of it.

    intent (a line)  ->  arrays (a file, which has its name when it is whole)  ->  result (a line)

each on the disk before the next begins.

Line 1 says what is done where: configuration, versions, seed. A last line that was torn off is cut
away, since nobody was told that it was there. An intent without a result is in doubt: what it was
going to do may have been done to the sample.
"""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from micjax.core.files import replaced
from micjax.core.plain import plain, storable
from micjax.instruments.base import (
    Aborted,
    Axis,
    BudgetError,
    Frame,
    InDoubt,
    Instrument,
    LimitError,
    Mode,
    NotReady,
    Over,
    Record,
    layers,
)
from micjax.instruments.chain import (
    JournalError,
    chained,
    lock,
    read_chained,
    same_file,
    write_end,
)
from micjax.instruments.journal_reader import LINES, RECORDS, JournalStep, record_of, steps_of

log = logging.getLogger("micjax")

PACKAGES = ("micjax", "jax", "numpy", "h5py")


def _as_mapping(meta: Any) -> dict[Any, Any]:
    """Whatever an adapter calls metadata: it does not cost a measurement."""
    if meta is None:
        return {}
    return dict(meta) if isinstance(meta, Mapping) else {"meta": meta}


class Journal:
    """The journal in a folder; the only one that writes there.

    **Arguments:**

    - `folder`: made if it is not there.
    - `configuration`: plain values; a journal is only taken up again with the same ones.
    - `seed`: of whatever draws lots.
    - `resume`: goes on with the journal that is there.

    **Raises:** `JournalError` where another process writes, where there is a journal already (or,
    with `resume`, none), of another configuration or broken inside, or where the folder cannot be
    made; `ValueError` for a configuration that is no JSON.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        configuration: Mapping[str, Any],
        *,
        seed: int = 0,
        resume: bool = False,
    ):
        try:
            configuration = json.loads(json.dumps(configuration))
        except TypeError as error:
            raise ValueError(f"the configuration is written as JSON: {error}") from None
        self.folder, self._broken = pathlib.Path(folder), ""
        self.path = self.folder / LINES
        known = self.path.exists()
        if resume and not known:
            raise JournalError(f"there is no journal in {self.folder} to resume")
        try:
            (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
            # nothing is left to be written later
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise JournalError(f"no journal can be written in {self.folder}: {error}") from error
        begun = {
            "kind": "begin",
            "configuration": configuration,
            "seed": seed,
            "versions": {n: importlib.metadata.version(n) for n in PACKAGES},
            "python": platform.python_version(),
            "host": platform.node(),
            "time": time.time(),
        }
        try:
            lock(self._file, self.path)
            self._take_up(begun, resume)
        except BaseException:
            self.close()
            raise

    def _take_up(self, begun: dict[str, Any], resume: bool) -> None:
        self._lines, self._chain, unchained = read_chained(self.path)
        if not self._lines:  # new, or killed before its first line was on the disk
            _cut(self.path)
            self._write(begun)
            _sync_folder(self.folder)
            return
        if not resume:
            raise JournalError(f"{self.path} is there already; resume it, or choose another folder")
        _same(self._lines[0], begun, self.path)
        if unchained:
            log.warning(
                "%s: the first %d lines are of before there were checksums; whether they are as "
                "they were written cannot be told",
                self.path,
                unchained,
            )
        _cut(self.path)

    def intend(self, at: Mapping[str, float], mode: str, over: Over = None, **more: Any) -> int:
        """Says what is measured next, and where; returns the number of the step."""
        index = sum(line["kind"] == "intent" for line in self._lines)
        self._write(
            {
                "kind": "intent",
                "index": index,
                "at": dict(at),
                "mode": mode,
                "over": dataclasses.asdict(over) if isinstance(over, Frame) else over,
                "time": time.time(),
                **more,
            }
        )
        return index

    def add(self, index: int, record: Record, **more: Any) -> None:
        """The record of a step: its arrays first, then the line that says that they are there."""
        name = f"{RECORDS}/{index:06d}.npz"
        arrays = {f"data/{n}": storable(v) for n, v in record.data.items()}
        arrays |= {f"coords/{n}": storable(v) for n, (v, _) in record.coords.items()}
        with self._or_broken():
            with replaced(self.folder / name) as unfinished:
                with open(unfinished, "wb") as file:
                    np.savez(file, **arrays)
                digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
            _sync_folder(self.folder / RECORDS)
        self._write(
            {
                "kind": "result",
                "index": index,
                "file": name,
                "sha256": digest,
                "dims": {n: list(d) for n, d in record.dims.items()},
                "units": dict(record.units),
                "coordinate_units": {n: unit for n, (_, unit) in record.coords.items()},
                "at": dict(record.at),
                "t0": record.t0,
                "t1": record.t1,
                "meta": _as_mapping(record.meta),
                **more,
            }
        )

    def fail(self, index: int, reason: str, again: bool = False) -> None:
        """A step that ended without a record, and whose state is known.

        `again`: nothing was done, the same may be measured again.

        **Raises:** `ValueError` for a step that is not in doubt.
        """
        doubt = [step.index for step in self.in_doubt]
        if index not in doubt:
            raise ValueError(f"step {index} is not in doubt; in doubt are {doubt or 'none'}")
        line = {"kind": "result", "index": index, "failed": reason, "again": again}
        self._write({**line, "time": time.time()})

    def note(self, kind: str, **more: Any) -> None:
        """A line of another kind: what a campaign has to know again."""
        self._write({"kind": kind, "time": time.time(), **more})

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines, the first one left out."""
        return self._lines[1:]

    @property
    def steps(self) -> list[JournalStep]:
        return steps_of(self._lines)

    @property
    def in_doubt(self) -> list[JournalStep]:
        return [step for step in self.steps if step.result is None]

    def record(self, step: JournalStep) -> Record:
        """The record of a step, checked against its sha256."""
        return record_of(self.folder, step)

    def close(self) -> None:
        self._file.close()  # which unlocks

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        line = plain(line)
        raw, chain = chained(self._chain, line)
        with self._or_broken():
            left = memoryview(raw)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
            if not same_file(self._file, self.path):
                raise FileNotFoundError(f"{self.path} was removed or replaced")
        self._lines.append(json.loads(json.dumps(line)))
        self._chain = chain
        write_end(self.path, len(self._lines), chain)

    @contextlib.contextmanager
    def _or_broken(self) -> Iterator[None]:
        if self._broken:
            raise JournalError(f"{self.path} was given up ({self._broken}); take it up anew")
        try:
            yield
        except BaseException as error:  # Ctrl-C too: a part of a line may be on the disk
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            self._broken = "the disk is full" if full else str(error) or type(error).__name__
            if not isinstance(error, OSError):
                raise
            raise JournalError(f"{self.path} cannot be written: {self._broken}") from error


class Recorded:
    """An instrument whose every measurement is in a journal before it is anywhere else.

    When the journal cannot be written the instrument is stopped, and nothing more is measured. A
    measurement that breaks off, but for reasons that left the sample as it was, stays in doubt.

    **Raises:** `InDoubt` at once, if the journal has steps in doubt that are not repeatable.
    """

    def __init__(self, instrument: Instrument, journal: Journal):
        self.instrument, self.journal = instrument, journal
        for step in journal.in_doubt:
            mode = instrument.modes.get(step.intent["mode"])
            if mode is None or not mode.repeatable:
                where = ", ".join(f"{n} = {v:g}" for n, v in step.intent["at"].items())
                raise InDoubt(
                    f"step {step.index}, {step.intent['mode']} at {where}, was begun and has no "
                    "result; it may have changed the sample. Look there, then tell the journal: "
                    f"fail({step.index}, reason) to go on without it"
                )

    @property
    def axes(self) -> Mapping[str, Axis]:
        return self.instrument.axes

    @property
    def modes(self) -> Mapping[str, Mode]:
        return self.instrument.modes

    def read(self) -> dict[str, float]:
        return self.instrument.read()

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        return self.instrument.move(target)

    def acquire(self, mode: str, over: Over = None) -> Record:
        units, at = {n: axis.unit for n, axis in self.axes.items()}, self.read()
        with self._stopped_if_not_written():
            index = self.journal.intend(at, mode, over, axis_units=units, **self._spent())
        try:
            record = self.instrument.acquire(mode, over)
        except (LimitError, NotReady, BudgetError) as error:  # nothing was done to the sample
            with self._stopped_if_not_written():
                self.journal.fail(index, f"{type(error).__name__}: {error}", again=True)
            raise
        except Aborted as error:
            if error.record is not None:  # measured all the same, and not lost
                with self._stopped_if_not_written():
                    self.journal.add(index, error.record, **self._spent())
            raise
        with self._stopped_if_not_written():
            self.journal.add(index, record, **self._spent())
        return record

    def note(self, kind: str, **more: Any) -> None:
        """A line of another kind into the journal."""
        with self._stopped_if_not_written():
            self.journal.note(kind, **more)

    def stop(self) -> None:
        self.instrument.stop()

    def _spent(self) -> dict[str, Any]:
        """Seconds and dose so far, where a guard below counts them."""
        counts = (layer.spent for layer in layers(self.instrument) if hasattr(layer, "spent"))
        return {"spent": spent} if (spent := next(counts, None)) is not None else {}

    @contextlib.contextmanager
    def _stopped_if_not_written(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # for whatever reason: what is not written must not be measured
            self.instrument.stop()
            raise


# --- small things -------------------------------------------------------------------------------


def _same(first: dict[str, Any], begun: dict[str, Any], path: pathlib.Path) -> None:
    if first.get("kind") != "begin":
        raise JournalError(f"{path} does not begin as a journal")
    for part in ("configuration", "seed"):
        old, new = first[part], begun[part]
        if json.dumps(old, sort_keys=True) == json.dumps(plain(new), sort_keys=True):
            continue  # NaN is NaN
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
            differences = "; ".join(f"{k}: {old.get(k)!r} then, {new.get(k)!r} now" for k in keys)
        else:
            differences = f"{old!r} then, {new!r} now"
        raise JournalError(f"{path} is of another {part}: {differences}")


def _cut(path: pathlib.Path) -> None:
    """Takes a torn last line away."""
    raw = path.read_bytes()
    complete_bytes = raw.rfind(b"\n") + 1
    if complete_bytes == len(raw):
        return
    with open(path, "r+b") as file:
        file.truncate(complete_bytes)
        os.fsync(file.fileno())


def _sync_folder(folder: pathlib.Path) -> None:
    if os.name == "nt":  # where a folder cannot be opened, and need not be
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
