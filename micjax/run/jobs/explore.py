"""An exploration: a plan of what to measure, as a campaign of a learner in a run folder."""

import contextlib
import dataclasses
import math
import os
import pathlib
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from micjax.active.campaign import STOPPED, Campaign, Number, Policy, Reduce
from micjax.active.learner.belief import Model, physical_model, plain_model
from micjax.active.learner.cost import Cost
from micjax.active.learner.learner import ID, Learner
from micjax.active.learner.looking import looking_model
from micjax.active.learner.space import Space
from micjax.active.outcomes import Wish
from micjax.active.snapshot import Snapshots
from micjax.core.foreign.modules import trusted_function
from micjax.core.names import unknown_name
from micjax.core.plain import scalar
from micjax.instruments import Guard, Instrument, Journal, Record
from micjax.instruments.journal_reader import spent_of
from micjax.run.folder import fingerprints
from micjax.run.jobs.sources import (
    Source,
    device_of,
    image_of,
    imported,
    open_file,
    open_function,
    open_instrument,
    reduced,
)
from micjax.run.plans.explore import ExplorePlan, FittedSignal
from micjax.run.plans.settings import checked, settings_of
from micjax.run.registry import find

# --- what a plan stands for --------------------------------------------------------------------


def check_code(plan: ExplorePlan, trusted: Collection[str] | None = ()) -> None:
    """Whether the user has agreed to the code that the plan names; nothing of it is imported.

    **Arguments:**

    - `trusted`: packages that may be named besides those of `trusted_source`.

    **Raises:** `ValueError` for what may not be imported, or is no function or instrument.
    """
    if plan.mean is not None:
        find(plan.mean.problem, trusted)
    for signal in (plan.signal, *(outcome.signal for outcome in plan.outcomes.values())):
        if isinstance(signal, FittedSignal):
            find(signal.fit, trusted)
    if plan.policy is None and not _is_code(plan):
        return
    if str(pathlib.Path.cwd()) not in sys.path:
        sys.path.append(str(pathlib.Path.cwd()))
    if plan.policy is not None:
        trusted_function(plan.policy, trusted)
    if not _is_code(plan):
        return
    module = trusted_function(plan.measure, trusted)
    if module.partition(".")[0] == "micjax" and not hasattr(imported(plan.measure), "acquire"):
        raise ValueError(f"{plan.measure} is no instrument, and of micjax nothing else is measured")


def _is_code(plan: ExplorePlan) -> bool:
    return plan.mode is not None or (":" in plan.measure and not os.path.exists(plan.measure))


def source_of(plan: ExplorePlan, device: Instrument | None = None) -> Source:
    """**Raises:** `ValueError`, `OSError` for what cannot be opened or has no axes."""
    source = _main_source(plan, device)
    if plan.rules:
        ruled = Space(source.space.axes, source.space.candidates, plan.rules)
        source = dataclasses.replace(source, space=ruled)
    others = {name: _reduce(plan, name, source) for name in _others(plan)}
    if not others:
        return source
    main = source.reduce

    def reduce(record: Record) -> dict[str, Number]:
        return {plan.outcome: main(record)} | {name: of(record) for name, of in others.items()}

    return dataclasses.replace(source, reduce=reduce)


def _others(plan: ExplorePlan) -> list[str]:
    """The outcomes beside the main one."""
    return [name for name in plan.outcomes if name != plan.outcome]


def _reduce(plan: ExplorePlan, name: str, source: Source) -> Reduce:
    """**Raises:** `ValueError` for a channel that is not measured, or another signal."""
    given, there = plan.outcomes[name], source.instrument.modes[source.mode].channels
    channel = given.channel or (name if name in there else plan.channel)
    if channel is not None and channel not in there:
        raise ValueError(f"outcome {name!r}: {unknown_name('channel', channel, there)}")
    return reduced(plan.signal if given.signal is None else given.signal, channel)


def _main_source(plan: ExplorePlan, device: Instrument | None) -> Source:
    axes = {name: axis.model_dump(exclude_unset=True) for name, axis in plan.axes.items()}
    if device is not None:
        return open_instrument(device, plan.mode, plan.channel, plan.signal, axes, plan.at)
    if plan.at or plan.options:
        raise ValueError(
            "`at` and `options` are for instruments, which have a `mode`; those of a fit stand "
            "inside of `signal`"
        )
    if _is_code(plan):
        others = [plan.outcomes[name].channel or name for name in _others(plan)]
        channels = [plan.channel or plan.outcome, *others] if others else []
        return open_function(plan.measure, plan.signal, axes, channels)
    if axes:
        raise ValueError(f"{plan.measure} brings its own axes; `axes` is for functions")
    return open_file(plan.measure, plan.channel, plan.signal)


def identity_of(plan: ExplorePlan) -> dict[str, Any]:
    """What a journal is of: the plan, but for how long it goes on, and what is in its files."""
    files = measured_files(plan)
    others = {"kind", "budget", "tolerance", "out", "guard", "seed"}
    same = plan.model_dump(mode="json", exclude=others)
    if plan.policy is None:  # as in journals from before there were others
        del same["policy"], same["policy_options"]
    for name in ("outcomes", "rules"):
        if not same[name]:
            del same[name]
    same["measure"] = None if "measure" in files else plan.measure  # wherever the file lies
    if plan.look is not None:
        same["look"]["file"] = None
    return same | {"sha256": {name: known["sha256"] for name, known in files.items()}}


def measured_files(plan: ExplorePlan) -> dict[str, dict[str, Any]]:
    """The fingerprints of the files that are measured and looked at."""
    return fingerprints({"measure": plan.measure, "look": plan.look and plan.look.file})


def with_absolute_paths(plan: ExplorePlan) -> ExplorePlan:
    """So that the plan can be read again from another folder."""
    files = {name: known["path"] for name, known in measured_files(plan).items()}
    new: dict[str, Any] = {"measure": files.get("measure", plan.measure)}
    if "look" in files:
        new["look"] = plan.look.model_copy(update={"file": files["look"]})
    return plan.model_copy(update=new)


def learner_of(plan: ExplorePlan, source: Source) -> Learner:
    """**Raises:** `ValueError` for rates of axes that do not exist, or settings that clash."""
    space = source.space
    return Learner(
        space,
        outcome=plan.outcome,
        goal=plan.goal,
        outcomes=wanted_of(plan),
        acquisition=plan.acquisition,
        level=plan.level,
        wanted=plan.wanted,
        initial=plan.initial,
        model=_model(plan, source),
        cost=None if plan.cost is None else _cost(plan, source),
        seed=plan.seed,
        budget=plan.budget,
        tolerance=plan.tolerance,
    )


def wanted_of(plan: ExplorePlan) -> dict[str, Wish]:
    """What is wanted of the outcomes of a plan."""
    return {
        name: Wish(given.goal, given.at_least, given.at_most, given.reference)
        for name, given in plan.outcomes.items()
    }


def policy_of(plan: ExplorePlan, learner: Learner) -> Policy:
    """What suggests: the learner, or what `policy` names, made with the keywords of a learner
    `(space, outcome=, goal=, seed=)` and its own options.

    **Raises:** `ValueError` for what is no policy; whatever making it raises.
    """
    if plan.policy is None:
        if plan.policy_options:
            raise ValueError("`policy_options` are for a `policy`, and none is named")
        return learner
    kind, same = imported(plan.policy), {n: getattr(plan, n) for n in ("outcome", "goal", "seed")}
    if plan.outcomes:
        same["outcomes"] = wanted_of(plan)
    if not callable(kind):
        raise ValueError(f"{plan.policy} is neither a class nor a function that makes a policy")
    policy = kind(learner.space, **same, **plan.policy_options)
    if not isinstance(policy, Policy):
        raise ValueError(
            f"{plan.policy} gave a {type(policy).__name__}, which has not both suggest(num_points) "
            "and ingest(points)"
        )
    return policy


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
    entry = find(plan.mean.problem)
    allowed = settings_of(entry.module.problem)
    options = checked(f"option of {entry.name}", plan.mean.options, allowed, entry.ours)
    physics = entry.module.problem(**options)
    return physical_model(source.space, physics, y_scale=plan.mean.y_scale)


def _cost(plan: ExplorePlan, source: Source) -> Cost:
    """What is not given is what the instrument says."""
    given, names, there = plan.cost, source.space.names, source.instrument
    for name in given.rates:
        if name not in names:
            raise ValueError(unknown_name("axis", name, names))
    rates = np.asarray([given.rates.get(name, there.axes[name].rate) for name in names])
    seconds, _ = there.modes[source.mode].cost()
    settle = max(there.axes[name].settle for name in names)
    return Cost(
        rates,
        settle if given.settle_s is None else given.settle_s,
        seconds if given.dwell_s is None else given.dwell_s,
        given.dose_per_s,
    )


# --- the loop ----------------------------------------------------------------------------------


class _Noted:
    """A policy, and a learner that is told the same; beside each point, the doubt there was about
    it and what it has cost by then."""

    def __init__(self, policy: Policy, learner: Learner):
        self.policy, self.learner = policy, learner
        self.budget = learner.settings.budget
        self.surprise: list[float] = []  # predicted sd of each point before it was measured
        self.seconds: list[float] = []  # spent after each measurement
        self._waiting: dict[Any, tuple[float, float]] = {}
        self._suggested = 0

    def suggest(self, num_points: int | None = None) -> list[dict[str, Any]]:
        points = self.policy.suggest(num_points)
        if self.policy is not self.learner:
            points = self._checked(points)
        doubt_and_cost = zip(self._doubt(points), self._spent(points), strict=True)
        self._waiting = {p[ID]: both for p, both in zip(points, doubt_and_cost, strict=True)}
        return points

    def _checked(self, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Points of somebody else's policy, each with an id and on the axes."""
        space, checked = self.learner.space, []
        for point in points:
            try:
                settings = space.settings(space.numbers(point))
                space.check_allowed(space.numbers(point))
            except (TypeError, ValueError) as error:
                raise ValueError(f"the policy suggests {point}: {error}") from error
            checked.append({ID: scalar(point.get(ID, self._suggested)), **settings})
            self._suggested += 1
        if not checked or len({p[ID] for p in checked}) != len(checked):
            raise ValueError(f"the policy suggests {checked}; points with ids of their own are due")
        return checked

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        for each in self._each:
            each.ingest(points)
        for point in points:
            if all(math.isfinite(point[name]) for name in self.learner.outcomes.names):
                doubt, spent = self._waiting[point[ID]]
                self.surprise.append(doubt)
                self.seconds.append(spent)

    def register_failures(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        for each in self._each:
            if hasattr(each, "register_failures"):
                each.register_failures(suggestions)

    def should_stop(self) -> tuple[bool, str | None]:
        for each in self._each:
            stop, reason = getattr(each, "should_stop", lambda: (False, None))()
            if stop:
                return stop, reason
        return False, None

    @property
    def _each(self) -> tuple[Policy, ...]:
        same = self.policy is self.learner
        return (self.learner,) if same else (self.learner, self.policy)

    def _doubt(self, points: list[dict[str, Any]]) -> list[float]:
        try:
            return self.learner.uncertainty(points).tolist()
        except ValueError:  # too few data
            return [math.nan] * len(points)

    def _spent(self, points: list[dict[str, Any]]) -> list[float]:
        cost = self.learner.cost
        if cost is None:
            return [math.nan] * len(points)
        route = np.asarray([self.learner.space.numbers(p) for p in points])
        known = self.learner.data[0]
        before = known[-1:] if len(known) else route[:1]
        legs = np.asarray(cost.seconds(np.concatenate([before, route[:-1]]), route))
        so_far = self.seconds[-1] if self.seconds else 0.0
        return (so_far + np.cumsum(legs)).tolist()


class Exploration:
    """A plan in progress, in a folder; what its journal holds is taken up at once.

    **Arguments:**

    - `in_doubt`: what becomes of a measurement that was broken off and cannot be repeated: "skip"
        leaves it out, "again" measures it again all the same.
    - `trusted`: packages whose code the plan may name, as of `check_code`.

    **Raises:** `ValueError` for code that nobody has agreed to, `JournalError` for a journal of
    another plan, `InDoubt` for steps in doubt.
    """

    def __init__(
        self,
        plan: ExplorePlan,
        folder: str | os.PathLike,
        *,
        resume: bool = False,
        in_doubt: str | None = None,
        trusted: Collection[str] | None = (),
    ):
        check_code(plan, trusted)
        self.plan, self._open = plan, contextlib.ExitStack()
        self.stop_reason, self.finished = "interrupted", False
        with self._open:
            device = self._device()
            self.source = source_of(plan, device)
            self.learner = learner_of(plan, self.source)
            self.noted = _Noted(policy_of(plan, self.learner), self.learner)
            self.journal = self._open.enter_context(
                Journal(folder, identity_of(plan), seed=plan.seed, resume=resume)
            )
            for step in self.journal.in_doubt if in_doubt else ():
                self.journal.fail(step.index, f"in doubt: {in_doubt}", again=in_doubt == "again")
            self.guard = self._guard()
            self._snapshots = Snapshots(folder, self.learner)
            self._campaign = Campaign(
                self.guard,
                self.noted,
                self.source.mode,
                self.source.reduce,
                self.journal,
                outcome=plan.outcome,
                batch=plan.batch,
                target=self.source.target,
                learnt=self._snapshots,
            )
            self._open = self._open.pop_all()  # nothing was raised: it stays open

    def run(self) -> None:
        """Measure until the learner has enough. Ctrl-C ends it; all results are in the journal."""
        with self._signals():
            try:
                if self.plan.at:
                    self.guard.move(self.plan.at)
                self.stop_reason = self._campaign.run()
                self.finished = self.stop_reason != STOPPED
            finally:
                self._snapshots.write()

    def __enter__(self) -> "Exploration":
        return self

    def __exit__(self, *_) -> None:
        self._open.close()

    def _device(self) -> Instrument | None:
        if self.plan.mode is None:
            return None
        device = device_of(self.plan.measure, self.plan.options)
        if hasattr(device, "__exit__"):
            self._open.enter_context(device)
        return device

    def _guard(self) -> Guard:
        """Around the instrument: the limits of the plan, and what is left of its budgets."""
        given, source = self.plan.guard, self.source
        limits = {a.name: (float(a.lower), float(a.upper)) for a in source.space.axes}
        spent = spent_of(self.journal.lines, source.instrument.modes[source.mode].cost())
        seconds, dose = (given.seconds or math.inf, given.dose or math.inf)
        # nobody knows how long a function takes
        patience = given.patience or (math.inf if self.plan.mode is None else 5.0)
        return Guard(
            source.instrument, limits, seconds=seconds, dose=dose, spent=spent, patience=patience
        )

    def _signals(self) -> contextlib.AbstractContextManager:
        if threading.current_thread() is not threading.main_thread():  # only there can one listen
            return contextlib.nullcontext()
        return self.guard.signals()
