"""One run of a plan of any kind: its folder, its log, how it ends, and how one goes on with it."""

import abc
import contextlib
import logging
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from micjax.inference.solution import Solution
from micjax.instruments import LinkError, NotReady
from micjax.report.table import plain_table
from micjax.run.folder import TABLE, RunFolder, now, open_folder
from micjax.run.logs import FAILED, INTERRUPTED, Asked, expected, say_error
from micjax.run.plans.base import Plan
from micjax.run.provenance import surroundings

log = logging.getLogger("micjax")

BROKEN = (ConnectionError, TimeoutError, LinkError, NotReady)  # no fault of what was asked for
MOST_SHOWN = 40  # rows of a table
SHOWN = (
    "result.nxs",
    "values.h5",
    "measurements.csv",
    "network.h5",
)  # the first of them is the result


class Outcome(NamedTuple):
    """How a run ended."""

    folder: RunFolder
    solution: Solution | None  # None: interrupted before there was one
    interrupted: bool
    report: pathlib.Path | None  # None: it could not be written
    error: Exception | None = None  # of which the solution is what was there before


class Facts:
    """`provenance.json` of a run: where it comes from, how it goes, and how it ended."""

    def __init__(self, folder: RunFolder, known: Mapping[str, Any]):
        self.folder, self._began = folder, time.monotonic()
        self.known = dict(known) | {"status": "running", "start": now()}

    def ended(self, status: str, error: Exception | None = None) -> dict[str, Any]:
        """All of them, with the end; `write` puts them on the disk, when the result is there."""
        self.known |= {"status": status, "end": now()}
        self.known |= {"wall_s": round(time.monotonic() - self._began, 3)}
        self.known |= {} if error is None else {"error": f"{type(error).__name__}: {error}"}
        return self.known

    def write(self) -> None:
        self.folder.write_json("provenance.json", self.known)


class Run(abc.ABC):
    """A plan whose every name is checked and whose data are read, before anything is computed.

    `plan` with absolute paths and the defaults of its problem; `name` of a new folder in `runs/`,
    `title` in the log; `inputs`, the fingerprints of its files; `facts` for its provenance;
    `trust`, packages that the user has to agree to when the plan is read again.
    """

    plan: Plan
    name: str
    title: str
    inputs: Mapping[str, Any]
    facts: Mapping[str, Any] = {}
    trust: Sequence[str] = ()

    @abc.abstractmethod
    def describe(self) -> str:
        """What would be computed."""

    @abc.abstractmethod
    def compute(self, folder: RunFolder, facts: Facts, resume: bool) -> Outcome:
        """Fill the folder; the result is written before the report."""

    def opened(self, folder: RunFolder, resume: bool) -> contextlib.AbstractContextManager:
        """What is open while it runs; a plan that is wrong is told before there is a folder."""
        return contextlib.nullcontext()

    def can_go_on(self, folder: RunFolder) -> bool:
        """Whether `--resume` would find something."""
        return True

    def tables(self, solution: Solution) -> Sequence[Any]:
        """Rows for the terminal."""
        return (solution.table,)


def precision_of(plan: Plan) -> contextlib.AbstractContextManager:
    """That of the plan, where its kind has one."""
    precision = getattr(plan, "precision", None)
    if precision is None:
        return contextlib.nullcontext()
    return jax.enable_x64(precision == "float64")


def carry_out(run: Run, asked: Asked, given: bytes) -> int:
    """A run in its folder, from the beginning or from where it was broken off -> its exit status.

    **Arguments:**

    - `given`: the plan as the user gave it.

    **Raises:** what is wrong with the plan, before there is a folder.
    """
    folder = open_folder(run.plan, run.name, run.inputs, asked.resume)
    with contextlib.ExitStack() as stack:
        stack.callback(folder.unlock)
        if folder.path.exists():
            folder.lock()
        try:
            stack.enter_context(run.opened(folder, asked.resume))
        except Exception as error:
            if expected(error) and not isinstance(error, BROKEN):
                raise
            return _failed(run, asked, begin(run, folder, asked), error)
        facts = begin(run, folder, asked)
        try:
            if not asked.resume:
                (folder / "plan.yaml").write_bytes(given)
            outcome = run.compute(folder, facts, asked.resume)
            return _tell(run, asked, facts, outcome)
        except BrokenPipeError:  # the reader of our output has gone; the run is complete
            raise
        except Exception as error:
            return _failed(run, asked, facts, error)


def begin(run: Run, folder: RunFolder, asked: Asked) -> Facts:
    """Makes the folder; what it holds from now on says what was begun, also if it is killed."""
    for part in ("checkpoints", "figures"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    folder.lock()
    asked.kept.write_to(folder / "log.txt")
    log.info("%s in %s", run.title, folder.path)
    folder.write_json("plan.resolved.json", run.plan.resolved())
    facts = Facts(folder, surroundings(asked.argv, run.plan.seed, run.inputs) | run.facts)
    facts.write()
    return facts


def _tell(run: Run, asked: Asked, facts: Facts, outcome: Outcome) -> int:
    """The end of a run on the terminal -> its exit status."""
    if outcome.solution is not None:
        _show(run, outcome)
    if outcome.error is not None:
        return _failed(run, asked, facts, outcome.error)
    if outcome.interrupted:
        log.warning("interrupted; to go on: %s", how_to_go_on(run, outcome.folder))
        return INTERRUPTED
    if outcome.solution is not None and outcome.report is None:
        print(f"micjax: error: no report; the result is in {outcome.folder.path}", file=sys.stderr)
        return FAILED
    return 0


def _show(run: Run, outcome: Outcome) -> None:
    for sentence in outcome.solution.statements:
        print(sentence)
    for table in run.tables(outcome.solution):
        if table:
            print(f"\n{plain_table(table[:MOST_SHOWN])}")
        if len(table) > MOST_SHOWN:
            print(f"... {len(table)} rows in all, in {outcome.folder / TABLE}")
    print()
    for path in [p for p in map(outcome.folder.__truediv__, SHOWN) if p.exists()][:1]:
        print(f"result: {path}")
    if outcome.report is not None:
        print(f"report: {outcome.report}")


def how_to_go_on(run: Run, folder: RunFolder) -> str:
    """The command that goes on with a run, whatever it was begun with."""
    words = ["micjax", "run", str(folder / "plan.resolved.json"), "--out", str(folder.path)]
    trusted = [word for package in run.trust for word in ("--trust", package)]
    return shlex.join([*words, "--resume", *trusted])


def _failed(run: Run, asked: Asked, facts: Facts, error: Exception) -> int:
    """A run that failed: its folder says why -> its exit status."""
    asked.kept.file_only(error)
    facts.ended("failed", error)
    try:
        facts.write()
    except OSError as full:
        log.warning("provenance.json: %s", full)
    where = f" (more in {facts.folder / 'log.txt'})"
    status = say_error(error, FAILED, asked.debug, where)
    if run.can_go_on(facts.folder):
        print(f"micjax: to go on: {how_to_go_on(run, facts.folder)}", file=sys.stderr)
    return status
