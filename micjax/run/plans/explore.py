"""The plan of an exploration: what to measure, in search of what, and how long."""

from typing import Any, Literal

import pydantic

from micjax.active.learner.looking import SIDE
from micjax.run.plans.base import FilePath, Name, Plan, Section


class AxisPlan(Section):
    """One axis of a function; a file brings its own."""

    lower: float = 0.0
    upper: float = 1.0
    unit: str = ""
    whole: bool = False
    categories: tuple[str | int | float, ...] = ()


class CostPlan(Section):
    """What a measurement takes; what is left out is what the instrument says, else no time."""

    rates: dict[str, pydantic.PositiveFloat] = {}  # units of the axis per second
    settle_s: pydantic.NonNegativeFloat | None = None
    dwell_s: pydantic.NonNegativeFloat | None = None
    dose_per_s: pydantic.NonNegativeFloat = 0.0


class MeanPlan(Section):
    """A physical model as the mean of the process."""

    problem: str
    options: dict[str, Any] = {}
    y_scale: pydantic.PositiveFloat = 1.0  # a typical discrepancy, in units of the outcome


class LookPlan(Section):
    """An image of the sample, taken before, for a deep kernel to look at."""

    file: FilePath | None = None  # by default the measured one
    channel: str | None = None
    signal: str = "first"  # of a curve at each pixel
    logarithm: bool = False  # look at log10 of its size
    side: pydantic.PositiveInt = SIDE  # of the patches, pixels
    networks: pydantic.PositiveInt = 1


class FittedSignal(Section):
    """A number of the fit of each curve, with its error: `{fit: loop, name: coercive_rising_V}`."""

    fit: str  # a problem that fits a curve at each pixel of a map
    name: str  # one of its results
    options: dict[str, Any] = {}  # of its `load`


class OutcomePlan(Section):
    """What is wanted of an outcome, and where it comes from: `{goal: minimise}`,
    `{at_most: 0.2, channel: drift}`."""

    goal: Literal["maximise", "minimise"] | None = None
    at_least: float | None = None
    at_most: float | None = None
    reference: float | None = None
    # of an instrument; of a function that returns several by name, by default the outcome's name
    channel: str | None = None
    signal: str | FittedSignal | None = None  # by default that of the main outcome


class GuardPlan(Section):
    """Bounds of an instrument, over all of the exploration."""

    seconds: pydantic.PositiveFloat | None = None
    dose: pydantic.PositiveFloat | None = None
    patience: pydantic.PositiveFloat | None = None  # times what a measurement should take


class ExplorePlan(Plan):
    """What to measure, in search of what, and how long."""

    CHECKED_LATER = {"mean": {"options"}, "signal": {"options"}}
    OF_USER = ("axes", "outcomes", "at", "options", "policy_options")
    MARK = "journal.jsonl"  # which is compared with the plan when it is taken up

    kind: Literal["explore"] = "explore"
    measure: FilePath  # a file, package.module:function, or, with `mode`, package.module:instrument
    mode: str | None = None  # of the instrument
    options: dict[str, Any] = {}  # the instrument is made with
    at: dict[str, float] = {}  # settings that stay
    guard: GuardPlan = GuardPlan()
    channel: str | None = None
    signal: str | FittedSignal = "mean"  # of a curve at each point
    axes: dict[Name, AxisPlan] = {}
    rules: tuple[str, ...] = ()  # which settings are allowed: "x + 2 * y <= 1"
    outcome: Name = "outcome"
    goal: Literal["maximise", "minimise", "find", "map", "level"] = "maximise"
    outcomes: dict[Name, OutcomePlan] = {}  # further ones; limits and reference of this one
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
    # package.module:Class of somebody's optimiser, which suggests in place of the learner
    policy: str | None = None
    policy_options: dict[str, Any] = {}
