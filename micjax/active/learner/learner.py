"""A learner: it suggests where to measure next, and takes in what came back.

The protocol is that of an optimiser of bluesky-adaptive (suggest, ingest, get_best_points,
register_suggestions, register_failures, should_stop, checkpoint), so that a learner drives a plan
there as it is. A suggestion is a pure function of the seed, the number of suggestions before, and
the data in their batches: a journal replays to the same suggestions.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from micjax.active.acquire import values as acquisition
from micjax.active.gp.mixture import mean_and_variance
from micjax.active.identity import told_apart
from micjax.active.learner import checkpoint, predictive
from micjax.active.learner.belief import Belief, Model, plain_model
from micjax.active.learner.cost import Cost, tour
from micjax.active.learner.predictive import Prediction
from micjax.active.learner.settings import (
    Measured,
    Settings,
    all_finite,
    as_measured,
    point_count,
    told_of,
)
from micjax.active.learner.signals import SD
from micjax.active.learner.space import RETURNED, Number, Space
from micjax.active.learner.suggesting import Choice
from micjax.active.outcomes import Outcomes, Wanted
from micjax.active.rules import Rule
from micjax.core.names import unknown_name
from micjax.core.plain import scalar

log = logging.getLogger("micjax")

ID = "_id"
BEYOND = 0.1  # of its range: how far beyond an axis an instrument may arrive
NINETY = 1.6449  # standard deviations on both sides hold 90 % of a normal distribution


class Learner:
    """Bayesian optimisation, search, mapping or level finding over the axes of `space`.

    **Arguments:**

    - `space`: the axes, with candidates if only these points can be measured.
    - `outcome`: the key of the measured number in ingested points.
    - `goal`: `maximise` or `minimise` the outcome, `find` as many as possible of the `wanted`
        candidates where it is highest, `map` it, or find where it crosses `level`.
    - `outcomes`: what is wanted of further outcomes by name, see `active.outcomes.Wish`: limits
        that they have to keep (a point is then also worth as much as it is probably feasible), or
        goals of their own (up to three objectives in all: the front is sought). Under the name of
        the main outcome, its limits and its reference. Each has a process of its own.
    - `acquisition`: of `learner.settings.ACQUISITIONS`; by default what suits the goal.
    - `initial`: how many points are spread evenly before the model is asked (default: 2 d + 1, at
        least 5).
    - `model`: how the main outcome is modelled; by default, as the others, by two plain processes
        on robust scaled outcomes.
    - `cost`: what a measurement takes: a logarithmic acquisition is then compared for each second,
        from where the instrument is, and several points are suggested in the order of a short tour.
    - `seed`: of all random numbers.
    - `budget`: stop after so many measurements.
    - `tolerance`: stop when the improvement still expected anywhere is below this fraction of the
        standard deviation of the outcomes (goals `maximise` and `minimise`).
    - `file`: where `checkpoint` writes and `restore` reads.

    **Raises:** `ValueError` for an unknown goal or acquisition, or a level that is missing.
    """

    def __init__(
        self,
        space: Space,
        *,
        outcome: str = "y",
        goal: str = "maximise",
        outcomes: Wanted | None = None,
        acquisition: str | None = None,
        level: Number | None = None,
        wanted: int | np.integer | None = None,
        initial: int | np.integer | None = None,
        model: Model | None = None,
        cost: Cost | None = None,
        seed: int | np.integer = 0,
        budget: int | np.integer | None = None,
        tolerance: Number | None = None,
        file: str | os.PathLike | None = None,
    ):
        self.space, self._plain = space, plain_model(space)
        self.model = self._plain if model is None else model
        given = outcome, goal, acquisition, level, wanted, initial, seed, budget, tolerance
        self.outcomes = Outcomes(outcome, goal, outcomes or {}, (*space.names, ID))
        self.settings = Settings(*map(scalar, given)).checked(space, cost, self.outcomes)
        self.cost, self.file = cost, None if file is None else pathlib.Path(file)
        self._batches: list[list[Measured]] = []
        self._pending: dict[Any, tuple[float, ...]] = {}
        self._failures: list[tuple[float, ...]] = []
        self._used: set[tuple[float, ...]] = set()  # suggestions that were measured, somewhere near
        self._suggested = 0
        self._beliefs: tuple[Belief, ...] = ()

    # --- data in -------------------------------------------------------------------------------

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Take in measured points: the axes (or the id of a suggestion) and the outcomes of each.
        One without an id is the pending suggestion of the same settings, if there is one.

        Where an outcome is NaN or infinite the point has failed, and is no datum. Under the name of
        an outcome and `_sd` may stand its standard deviation: data count as much as these say
        relative to each other, and what they all are times is found from the data. One without it
        counts as the median one of the others.

        **Raises:** `ValueError` for a point off the axes, without one of its outcomes, or with
        something else in it, and for one that was not suggested and that a rule of the space does
        not allow; then none of the batch is taken.
        """
        waiting = dict(self._pending)
        batch = [self._read(point, waiting) for point in points]
        self._used |= {self._pending[identity] for identity in {*self._pending} - {*waiting}}
        self._pending = waiting
        bad = [entry[1] for entry in batch if not all_finite(entry)]
        if bad:
            message = "%d of %d outcomes are not finite: counted as failures"
            log.warning(message, len(bad), len(batch))
            self._failures += bad
        self._take([entry for entry in batch if all_finite(entry)])

    def _read(self, point: Mapping[str, Any], waiting: dict[Any, tuple[float, ...]]) -> Measured:
        """One point, which is taken from those `waiting`."""
        identity, outcomes = scalar(point.get(ID)), self.outcomes.names
        if missing := [name for name in outcomes if name not in point]:
            raise ValueError(f"the point {dict(point)} has no outcome {missing[0]!r}")
        if not isinstance(identity, str | int | float | None):
            raise ValueError(f"the {ID} {identity!r} is neither a text nor a number")
        known = {ID, *self.space.names, *outcomes, *(name + SD for name in outcomes)}
        if wrong := [name for name in point if name not in known]:
            raise ValueError(unknown_name("part of a point", wrong[0], known - {ID}))
        numbers = self.space.numbers(self._readbacks(identity, point))
        identity = self._waiting_at(numbers, waiting) if identity is None else identity
        if waiting.pop(identity, None) is None:
            self.space.check_allowed(numbers)
        (y, sd), *others = (told_of(point, name) for name in outcomes)
        return identity, numbers, y, sd, tuple(others)

    def _readbacks(self, identity: Any, point: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where a suggestion was measured, which is what the model learns; the suggestion is used
        up wherever that was. What can only be chosen is as it was suggested, and an instrument that
        arrives a little beyond an end of an axis is at that end."""
        if identity not in self._pending:
            return point
        readback = self.space.settings(self._pending[identity])
        if set(self.space.names) <= set(point):
            for axis in (a for a in self.space.axes if not a.whole):
                value, beyond = float(point[axis.name]), BEYOND * (axis.upper - axis.lower)
                near = axis.lower - beyond <= value <= axis.upper + beyond
                readback[axis.name] = min(max(value, axis.lower), axis.upper) if near else value
        return readback

    def _waiting_at(
        self, numbers: tuple[float, ...], waiting: Mapping[Any, tuple[float, ...]]
    ) -> Any:
        """Which suggestion somebody means who does not say so: the one of these settings, but for
        rounding to float32."""
        near = RETURNED * np.maximum(np.abs(self.space.lower), np.abs(self.space.upper))
        for identity, suggested in waiting.items():
            if np.all(np.abs(np.subtract(suggested, numbers)) <= near):
                return identity
        return None

    def _take(self, batch: list[Measured]) -> None:
        if batch:
            self._batches.append(batch)
        points, y = self.data
        if not batch or len(y) < 2:
            return
        key = jax.random.fold_in(jax.random.key(self.settings.seed), len(y))
        before = self._beliefs or (None,) * len(self.outcomes.names)
        keys = [key, *(jax.random.fold_in(key, i) for i in range(1, len(before)))]
        believed = [self._believed(i, before[i], keys[i]) for i in range(len(before))]
        self._beliefs = () if any(b is None for b in believed) else tuple(believed)
        now, earlier = believed[0], before[0]
        if getattr(now, "singular", False) and not getattr(earlier, "singular", False):
            text = "the kernel matrix of %d data is singular: distrust the smallest uncertainties"
            log.warning(text, len(y))

    def _believed(self, index: int, last: Belief | None, key: Array) -> Belief | None:
        """What is believed of one outcome after all data; None of a model that needs more."""
        model = self._plain if index else self.model
        sd = self.told[:, index, 1]
        errors = {"y_sd": sd} if np.isfinite(sd).any() else {}
        return model(self.data[0], self.told[:, index, 0], last, key, **errors)

    @property
    def data(self) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n"]]:
        """All measured points and their (main) outcomes, in the order they came."""
        points = np.asarray([numbers for _, numbers, *_ in self._measured], float)
        return points.reshape(-1, len(self.space.axes)), self.values[:, 0]

    @property
    def values(self) -> Float[np.ndarray, "n k"]:
        """Every outcome of the measured points, in the order of `outcomes.names`."""
        return self.told[..., 0]

    @property
    def told(self) -> Float[np.ndarray, "n k 2"]:
        """Every outcome and its standard deviation, NaN where none was told."""
        rows = [((y, sd), *others) for *_, y, sd, others in self._measured]
        return np.asarray(rows, float).reshape(len(rows), len(self.outcomes.names), 2)

    @property
    def _measured(self) -> list[Measured]:
        return [entry for batch in self._batches for entry in batch]

    def register_suggestions(
        self, suggestions: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Make somebody else's points known as pending, each with an `_id`.

        **Raises:** `ValueError` for one off the axes, or that a rule of the space does not allow;
        then none is known.
        """
        each = [self.space.numbers(point) for point in suggestions]
        for numbers in each:
            self.space.check_allowed(numbers)
        return [self._registered(numbers) for numbers in each]

    def _registered(self, numbers: Sequence[float]) -> dict[str, Any]:
        identity, self._suggested = self._suggested, self._suggested + 1
        self._pending[identity] = tuple(float(v) for v in numbers)
        return {ID: identity} | self.space.settings(numbers)

    def register_failures(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        """These suggestions could not be measured: stay away from them, and from their neighbours.

        **Raises:** `ValueError` for an id that is not pending and a point without its axes.
        """
        waiting, failed = dict(self._pending), []
        for suggestion in suggestions:
            identity = scalar(suggestion.get(ID))
            if identity in self._pending:
                numbers = self._pending[identity]
            else:
                numbers = self.space.numbers(suggestion)
                identity = self._waiting_at(numbers, waiting)
            waiting.pop(identity, None)
            failed.append(numbers)
        self._pending = waiting
        self._failures += failed

    # --- suggestions out -----------------------------------------------------------------------

    def suggest(self, num_points: int | None = None) -> list[dict[str, Any]]:
        """The points to measure next, `{"_id": ..., axis: setting}` each.

        **Raises:** `ValueError` when no candidate is left, or for no whole number of points.
        """
        count = 1 if num_points is None else point_count(num_points)
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 2**20 + self._suggested)
        chosen: list[tuple[float, ...]] = []
        while len(chosen) < count:
            known = len(self.data[1]) + len(self._pending) + len(chosen)
            if not self._beliefs or known < self.settings.initial:
                chosen.append(self._spread(self._suggested + len(chosen), chosen))
            else:
                key, now = jax.random.split(key)
                chosen.append(self._choice(chosen).best(now))
        if self.cost is not None and len(chosen) > 1:
            order = tour(np.asarray(chosen), self._position(), np.asarray(self.cost.rates))
            chosen = [chosen[i] for i in order]
        return [self._registered(numbers) for numbers in chosen]

    def _position(self) -> Float[np.ndarray, "d"]:
        """Where the instrument is after all that was suggested: at first in the middle."""
        if self._pending:
            return np.asarray(list(self._pending.values())[-1])
        points, _ = self.data
        return points[-1] if len(points) else 0.5 * (self.space.lower + self.space.upper)

    def _spread(self, index: int, chosen: list[tuple[float, ...]]) -> tuple[float, ...]:
        """The next allowed point of a scrambled Sobol sequence, or the free candidate nearest to
        it."""
        if self.space.candidates is None:
            return self.space.spread(index, self.settings.seed)
        unit = self.space.even(index, 1, self.settings.seed)
        width = self.space.upper - self.space.lower
        distance = np.sum(((self.space.candidates - self.space.lower) / width - unit) ** 2, axis=1)
        free = self._free(chosen)
        return tuple(self.space.candidates[acquisition.best_allowed(-distance, free)[0]].tolist())

    def _choice(self, chosen: Sequence[tuple[float, ...]] = ()) -> Choice:
        return Choice(
            self.space,
            self.settings,
            self.cost,
            self.outcomes,
            self._believing,
            self.data[0],
            self.values,
            waiting=(*self._pending.values(), *chosen),
            failures=tuple(self._failures),
            used=frozenset(self._used),
            position=self._position(),
        )

    def _free(self, chosen: Sequence[tuple[float, ...]] = ()) -> np.ndarray:
        """Which candidates are neither measured, nor pending, nor failed."""
        taken = {*self._pending.values(), *self._failures, *self._used, *chosen}
        return self.space.free(taken | {tuple(row) for row in self.data[0].tolist()})

    # --- what is known -------------------------------------------------------------------------

    @property
    def belief(self) -> Belief:
        """What the learner believes now of the main outcome.

        **Raises:** `ValueError` before there are two data.
        """
        return self._believing[0]

    @property
    def _believing(self) -> tuple[Belief, ...]:
        if not self._beliefs:
            raise ValueError(f"{len(self.data[1])} data are too few for a model; two are needed")
        return self._beliefs

    def predict(
        self,
        points: Sequence[Mapping[str, Any]] | np.ndarray,
        draws: int | None = None,
        outcome: str | None = None,
    ) -> Prediction:
        """What a measurement at these points would give; points as settings or `[m, d]` numbers.

        **Arguments:**

        - `draws`: of models and hyper-parameters at most so many, by their weights: quicker, where
            points are many.
        - `outcome`: which one, by default the main one.
        """
        index = 0 if outcome is None else self.outcomes.index(outcome)
        if not isinstance(points, np.ndarray):
            points = np.asarray([self.space.numbers(point) for point in points])
        return predictive.prediction(self._believing[index].predictive(draws), points)

    def reckoned(self, points: Float[np.ndarray, "m d"]) -> Prediction:
        """What a suggestion reckons with at these points: quicker than `predict`, with fewer draws
        of the hyper-parameters and on one scale."""
        mixture, scale = self.belief.mixture, self.belief.scale
        mean, variance = mean_and_variance(mixture, points)
        sd = NINETY * np.sqrt(mean_and_variance(mixture, points, noisy=True)[1])
        median, lower, upper = (scale.invert(z) for z in (mean, mean - sd, mean + sd))
        return Prediction(median, lower, upper, np.sqrt(variance))

    def uncertainty(self, points: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "m"]:
        """The standard deviation of the function that a suggestion reckons with, scaled."""
        numbers = np.asarray([self.space.numbers(point) for point in points])
        return np.sqrt(mean_and_variance(self.belief.mixture, numbers)[1])

    def acquisition_at(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m"]:
        """What the next measurement would be worth at these points."""
        return self._choice().worth(points)

    def get_best_points(self) -> list[tuple[Any, dict[str, Any], dict[str, float]]]:
        """The best measured point that is feasible, of several objectives the front: the id, the
        settings and the outcomes of each."""
        values, outcomes = self.values, self.outcomes
        best = outcomes.front(values) if outcomes.several else outcomes.order(values)[:1]
        return [
            (identity, self.space.settings(numbers), dict(zip(outcomes.names, row, strict=True)))
            for i in best
            for identity, numbers, *_ in [self._measured[i]]
            for row in [values[i].tolist()]
            if outcomes.feasible(values)[i]
        ]

    @property
    def leading(self) -> Float[np.ndarray, "d"]:
        """The numbers of the point that leads by the main outcome; where none is feasible, of the
        one that is nearest to it."""
        return self.data[0][self.outcomes.order(self.values)[0]]

    def should_stop(self) -> tuple[bool, str | None]:
        """Whether to stop now, and why."""
        measured, budget = len(self.data[1]), self.settings.budget
        if budget is not None and measured >= budget:
            return True, f"the budget of {budget} measurements is used"
        if self.space.candidates is not None and not self._free().any():
            return True, "every candidate has been measured"
        tolerance, goal = self.settings.tolerance, self.settings.goal
        if tolerance is None or goal not in ("maximise", "minimise") or not self._beliefs:
            return False, None
        if measured >= self.settings.initial and (gain := self._choice().gain()) < tolerance:
            return True, f"an improvement of {gain:.2g} standard deviations is expected at best"
        return False, None

    # --- keeping it ----------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write data, pending points and failures to `file`: all of it, or the old one stays.

        **Raises:** `ValueError` without a file; `OSError` when it cannot be written.
        """
        if self.file is None:
            raise ValueError("the learner was made without a file to write to")
        content = {
            "suggested": self._suggested,
            "batches": self._batches,
            "pending": list(self._pending.items()),
            "failures": self._failures,
            "used": sorted(self._used),
        }
        checkpoint.write(self.file, self._identity(), content)

    def restore(self) -> None:
        """Take up what `checkpoint` wrote: the same suggestions follow as would have then.

        **Raises:** `FileNotFoundError`; `ValueError` for another file, or one of a learner with
        other axes, candidates, cost, model or settings.
        """
        content = checkpoint.read(self.file, self._identity())
        self._batches, self._beliefs = [], ()
        self._failures = [tuple(row) for row in content["failures"]]
        self._pending = {identity: tuple(row) for identity, row in content["pending"]}
        self._used = {tuple(row) for row in content.get("used", ())}
        self._suggested = content["suggested"]
        for batch in content["batches"]:  # one by one: each belief starts from the last
            self._take([as_measured(*row) for row in batch])

    def _identity(self) -> dict[str, Any]:
        axes = [dataclasses.asdict(axis) for axis in self.space.axes]
        parts = {"candidates": self.space.candidates, "cost": self.cost, "model": self.model}
        identity = {"axes": axes} | {n: told_apart(v) for n, v in parts.items()}
        if self.space.rules:
            identity["rules"] = [
                str(rule) if isinstance(rule, Rule) else told_apart(rule)
                for rule in self.space.rules
            ]
        if not self.outcomes.plain:
            wanted = self.outcomes.by_name.items()
            identity["outcomes"] = {n: dataclasses.asdict(outcome) for n, outcome in wanted}
        return identity | self.settings._asdict()
