"""An exploration: a learner and a source in a loop, with a journal that it can be resumed from."""

import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pydantic

from micjax.active.belief import Model, physical_model, plain_model
from micjax.active.cost import Cost
from micjax.active.learner import ID, Learner
from micjax.active.looking import SIDE, looking_model
from micjax.core.progress import progress
from micjax.run.citizens import find
from micjax.run.folder import RUNS, RunFolder
from micjax.run.job import fingerprint
from micjax.run.names import unknown_name
from micjax.run.sources import Source, image_of, open_source
from micjax.run.yamls import parse

log = logging.getLogger("micjax")

TOO_MANY = 10  # failures in a row, after which something else is wrong
JOURNAL = "journal.jsonl"


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class AxisPlan(_Strict):
    """One axis of a function; a file brings its own."""

    lower: float = 0.0
    upper: float = 1.0
    unit: str = ""
    whole: bool = False
    categories: tuple[str | int | float, ...] = ()


class CostPlan(_Strict):
    """What a measurement takes."""

    rates: dict[str, pydantic.PositiveFloat] = {}  # units of the axis per second; else no time
    settle_s: pydantic.NonNegativeFloat = 0.0
    dwell_s: pydantic.NonNegativeFloat = 0.0
    dose_per_s: pydantic.NonNegativeFloat = 0.0


class MeanPlan(_Strict):
    """A physical model as the mean of the process."""

    problem: str
    options: dict[str, Any] = {}
    y_scale: pydantic.PositiveFloat = 1.0  # a typical discrepancy, in units of the outcome


class LookPlan(_Strict):
    """An image of the sample, taken before, for a deep kernel to look at."""

    file: str | None = None  # by default the measured one
    channel: str | None = None
    signal: str = "first"  # of a curve at each pixel
    logarithm: bool = False  # look at log10 of its size
    side: pydantic.PositiveInt = SIDE  # of the patches, pixels
    networks: pydantic.PositiveInt = 1


class ExplorePlan(_Strict):
    """What to measure, in search of what, and how long."""

    measure: str  # a file, or package.module:function
    channel: str | None = None
    signal: str = "mean"  # of a curve at each point
    axes: dict[str, AxisPlan] = {}
    outcome: str = "outcome"
    goal: Literal["maximise", "minimise", "find", "map", "level"] = "maximise"
    acquisition: str | None = None
    level: float | None = None
    wanted: pydantic.PositiveInt | None = None  # so many of the highest are to be found
    initial: pydantic.PositiveInt | None = None
    budget: pydantic.PositiveInt = 50
    batch: pydantic.PositiveInt = 1
    tolerance: pydantic.PositiveFloat | None = None
    mean: MeanPlan | None = None
    look: LookPlan | None = None
    cost: CostPlan | None = None
    seed: pydantic.NonNegativeInt = 0
    out: str | None = None


def make_explore_plan(given: Mapping[str, Any], where: str) -> ExplorePlan:
    """**Raises:** `ValueError` that names every key which is unknown or of another kind."""
    try:
        return ExplorePlan.model_validate(dict(given))
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: " + "; ".join(map(_fault, error.errors()))) from error


def _fault(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return unknown_name("key", key, ExplorePlan.model_fields)
    if error["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key} is {error['input']!r}: {error['msg']}"


def with_assignments(given: Mapping[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`given` with `cost.dwell_s=0.1`, `budget=70` and the like.

    **Raises:** `ValueError` for text that is no assignment.
    """
    plan = json.loads(json.dumps(given))
    for text in assignments:
        name, equals, value = text.partition("=")
        *parents, last = name.strip().split(".")
        if not equals or not last:
            raise ValueError(f"--set {text}: write name=value, as in budget=70")
        inner = plan
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ValueError(f"--set {text}: {parent} is no section")
        inner[last] = parse(value, f"--set {text}")
    return plan


# --- what a plan stands for --------------------------------------------------------------------


def source_of(plan: ExplorePlan) -> Source:
    axes = {name: axis.model_dump() for name, axis in plan.axes.items()}
    return open_source(plan.measure, plan.channel, plan.signal, axes)


def measured_file(plan: ExplorePlan) -> dict[str, dict[str, Any]]:
    """The fingerprints of the files that are measured and looked at."""
    named = {"measure": plan.measure}
    if plan.look is not None and plan.look.file is not None:
        named["look"] = plan.look.file
    paths = {name: pathlib.Path(what) for name, what in named.items()}
    return {name: fingerprint(path) for name, path in paths.items() if path.is_file()}


def learner_of(plan: ExplorePlan, source: Source) -> Learner:
    """**Raises:** `ValueError` for rates of axes that do not exist, or settings that clash."""
    space = source.space
    return Learner(
        space,
        outcome=plan.outcome,
        goal=plan.goal,
        acquisition=plan.acquisition,
        level=plan.level,
        wanted=plan.wanted,
        initial=plan.initial,
        model=_model(plan, source),
        cost=None if plan.cost is None else _cost(plan.cost, space.names),
        seed=plan.seed,
        budget=plan.budget,
        tolerance=plan.tolerance,
    )


def _model(plan: ExplorePlan, source: Source) -> Model:
    if plan.mean is not None and plan.look is not None:
        raise ValueError("`mean` and `look` are two models; give one of them")
    if plan.look is not None:
        look = plan.look
        image = image_of(look.file or plan.measure, look.channel, look.signal, look.logarithm)
        return looking_model(
            source.space, image, side=look.side, members=look.networks, seed=plan.seed
        )
    if plan.mean is None:
        return plain_model(source.space)
    physics = find(plan.mean.problem).module.problem(**plan.mean.options)
    return physical_model(source.space, physics, y_scale=plan.mean.y_scale)


def _cost(cost: CostPlan, names: list[str]) -> Cost:
    for name in cost.rates:
        if name not in names:
            raise ValueError(unknown_name("axis", name, names))
    rates = np.asarray([cost.rates.get(name, math.inf) for name in names])
    return Cost(rates, cost.settle_s, cost.dwell_s, cost.dose_per_s)


# --- the journal -------------------------------------------------------------------------------


class Journal:
    """One line for each suggestion and each result, on the disk before anything else happens."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def add(self, entry: Mapping[str, Any]) -> None:
        """**Raises:** `OSError` when the line cannot be written."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> list[dict[str, Any]]:
        """All lines; a last one that was torn off is cut away.

        **Raises:** `ValueError` for a line inside that cannot be read.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().splitlines(keepends=True)
        read: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            try:
                read.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise ValueError(f"{self.path}, line {number}: {error}") from error
                self.path.write_bytes(b"".join(lines[:-1]))
        return read


# --- the loop ----------------------------------------------------------------------------------


class Exploration:
    """A plan in progress."""

    def __init__(self, plan: ExplorePlan, journal: Journal):
        self.plan, self.journal = plan, journal
        self.source = source_of(plan)
        self.learner = learner_of(plan, self.source)
        self.surprise: list[float] = []  # predicted sd of each point before it was measured
        self.seconds: list[float] = []  # spent after each measurement
        self.stop_reason, self.finished = "interrupted", False
        self._failures = 0

    def replay(self) -> None:
        """Take up the journal: the same suggestions must follow from the same results.

        **Raises:** `ValueError` when they do not (another version, another plan).
        """
        entries = self.journal.entries()
        for i, entry in enumerate(entries):
            if "suggested" not in entry:
                continue
            points = self.learner.suggest(self.plan.batch)
            if points != entry["suggested"]:
                raise ValueError(
                    f"{self.journal.path}: the replay went another way at suggestion "
                    f"{entry['suggested']}, which is {points} now (another version of the code?)"
                )
            # a batch that was broken off is measured again from its first missing point on
            done = {e["result"][ID]: e["result"] for e in _results(entries[i + 1 :])}
            self._measured(points, done)

    def run(self) -> None:
        """Measure until the learner has enough. Ctrl-C ends it; all results are in the journal."""
        total = self.plan.budget
        with progress("explore", total) as show:
            while True:
                stop, reason = self.learner.should_stop()
                if stop:
                    self.stop_reason, self.finished = reason or "", True
                    return
                points = self.learner.suggest(self.plan.batch)
                self.journal.add({"suggested": points})
                self._measured(points, {})
                show(min(len(self.learner.data[1]), total), self._best())

    def _best(self) -> str:
        best = self.learner.get_best_points()
        return f"best {best[0][2][self.plan.outcome]:.6g}" if best else ""

    def _measured(self, points: list[dict[str, Any]], done: Mapping[Any, dict[str, Any]]) -> None:
        doubt = self._doubt(points)
        spent = self._spent(points)
        results = []
        for point in points:
            result = done.get(point[ID]) or self._measure(point)
            results.append({**point, self.plan.outcome: _number(result[self.plan.outcome])})
        good = [math.isfinite(r[self.plan.outcome]) for r in results]
        self.learner.ingest(results)
        self.surprise += [d for d, ok in zip(doubt, good, strict=True) if ok]
        self.seconds += [s for s, ok in zip(spent, good, strict=True) if ok]
        self._failures = 0 if any(good) else self._failures + len(good)
        if self._failures >= TOO_MANY:
            raise RuntimeError(f"{self._failures} measurements in a row have failed")

    def _measure(self, point: dict[str, Any]) -> dict[str, Any]:
        settings = {name: point[name] for name in self.source.space.names}
        try:
            y = self.source.measure(settings)
        except Exception as error:  # the instrument's fault must not lose the run
            log.warning("%s failed: %s: %s", settings, type(error).__name__, error)
            y = math.nan
        result = {ID: point[ID], self.plan.outcome: y if math.isfinite(y) else None}
        self.journal.add({"result": result})
        return result

    def _doubt(self, points: list[dict[str, Any]]) -> list[float]:
        try:
            return self.learner.uncertainty(points).tolist()
        except ValueError:  # too few data
            return [math.nan] * len(points)

    def _spent(self, points: list[dict[str, Any]]) -> list[float]:
        cost = self.learner.cost
        if cost is None:
            return [math.nan] * len(points)
        space = self.source.space
        route = np.asarray([space.numbers(p) for p in points])
        before = self.learner.data[0][-1:] if len(self.learner.data[0]) else route[:1]
        legs = np.asarray(cost.seconds(np.concatenate([before, route[:-1]]), route))
        so_far = self.seconds[-1] if self.seconds else 0.0
        return (so_far + np.cumsum(legs)).tolist()


def _results(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results up to the next suggestion."""
    ends = next((i for i, e in enumerate(entries) if "suggested" in e), len(entries))
    return [e for e in entries[:ends] if "result" in e]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# --- its folder --------------------------------------------------------------------------------


def open_exploration(plan: ExplorePlan, resume: bool) -> RunFolder:
    """The folder of `plan.out`, or a new one in `runs/`.

    To resume, the journal must be of the same plan; budget and tolerance may differ.

    **Raises:** `ValueError` when the folder holds something else, or nothing to go on from.
    """
    if plan.out is None:
        if resume:
            raise ValueError("--resume needs --out DIR, the exploration to go on with")
        stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-explore-{plan.outcome}"
        path, count = pathlib.Path(RUNS) / stem, 1
        while path.exists():
            count += 1
            path = pathlib.Path(RUNS) / f"{stem}-{count}"
        path.mkdir(parents=True)
        return RunFolder(path)
    folder = RunFolder(pathlib.Path(plan.out).expanduser())
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"--out {folder.path} is a file; a folder is wanted")
    begun = (folder / JOURNAL).exists()
    if resume and not begun:
        raise ValueError(f"--resume: there is no exploration in {folder.path}")
    if not resume and folder.path.exists() and any(folder.path.iterdir()):
        hint = "give --resume to go on with it, or another --out" if begun else "give another --out"
        raise ValueError(f"--out {folder.path} is not empty; {hint}")
    if resume:
        _check_same(plan, folder.read_json("plan.resolved.json"), folder.path)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def _check_same(plan: ExplorePlan, was: Mapping[str, Any], path: pathlib.Path) -> None:
    now = plan.model_dump(mode="json")
    free = {"budget", "tolerance", "out"}
    other = [k for k in now if k not in free and now[k] != was.get(k)]
    if other:
        pairs = ", ".join(f"{k} was {was.get(k)!r}, is {now[k]!r}" for k in other)
        raise ValueError(f"{path} holds the exploration of another plan: {pairs}")
