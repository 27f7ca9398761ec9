"""The loop from end to end, broken off at each of its stages and taken up again."""

import decimal
import re
import threading

import numpy as np
import pytest
from test_instruments import fields

from micjax.active.campaign import Campaign, RandomPolicy, Raster, request_stop
from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space
from micjax.instruments import (
    Aborted,
    Guard,
    InDoubt,
    InstrumentError,
    Journal,
    JournalError,
    LimitError,
    LinkError,
    Mode,
    Recorded,
    Replay,
    consolidate,
)


def height(record):
    return float(record.data["height"])


def guarded(**options):
    return Guard(Replay(fields(), seconds=1.0), **options)


def learner(inst, **options):
    space = Space([SearchAxis(n, a.lo, a.hi, a.unit) for n, a in inst.axes.items()])
    return Learner(space, outcome="height", initial=3, **options)


def begun(folder, resume=False):
    return Journal(folder, {"what": "height"}, resume=resume)


def campaign(journal, policy=None, inst=None, **options):
    inst = inst or guarded()
    policy = policy or RandomPolicy(inst.axes, seed=1)
    return Campaign(inst, policy, "pixel", height, journal, outcome="height", **options)


def test_random_points_until_enough(tmp_path):
    with begun(tmp_path) as journal:
        loop = campaign(journal)
        assert loop.run(5) == "5 points are measured"
        assert len({p["x"] for p in loop.points}) == 5
        assert all(np.isfinite(p["height"]) for p in loop.points)
    assert consolidate(tmp_path, tmp_path / "all.nxs") == 5


def test_a_raster_goes_there_and_back(tmp_path):
    inst = guarded()
    with begun(tmp_path) as journal:
        loop = campaign(journal, Raster(inst.axes, {"y": 2, "x": 3}), inst)
        assert loop.run() == "the raster is done"
    found = [(round(p["y"] * 1e9), round(p["x"] * 1e9)) for p in loop.points]
    assert found == [(100, 0), (100, 600), (100, 1200), (900, 1200), (900, 600), (900, 0)]


def test_budgets_end_it(tmp_path):
    with begun(tmp_path) as journal:
        loop = campaign(journal, inst=guarded(seconds=3.5))
        # the moves have taken some of the half second
        assert re.search(r"takes 1 s; 0\.\d+ s are left", loop.run(10))
        assert len(loop.points) == 3
    with begun(tmp_path, resume=True) as journal:
        loop = campaign(journal, inst=guarded())
        assert loop.run(5) == "5 points are measured"  # with a new budget it goes on


class Breaking(Replay):
    """Fails in its n-th measurement, before or after it has measured."""

    def __init__(self, n, error, after, repeatable=True):
        super().__init__(fields())
        self._n, self._error, self._after, self._done = n, error, after, 0
        self.modes = {**self.modes, "pixel": Mode("point", {"height": "m"}, repeatable=repeatable)}

    def acquire(self, mode, over=None):
        self._done += 1
        record = super().acquire(mode, over) if self._after or self._done != self._n else None
        if self._done == self._n:
            raise self._error
        return record


@pytest.mark.parametrize("error", [KeyboardInterrupt(), LinkError("the cable")])
@pytest.mark.parametrize("after", [False, True])
def test_broken_off_and_taken_up_it_ends_as_it_would_have(tmp_path, error, after):
    with begun(tmp_path / "whole") as journal:
        whole = campaign(journal)
        whole.run(6)
    with begun(tmp_path / "broken") as journal, pytest.raises(type(error)):
        campaign(journal, inst=Guard(Breaking(4, error, after))).run(6)
    with begun(tmp_path / "broken", resume=True) as journal:
        again = campaign(journal)
        assert len(again.points) == 3
        again.run(6)
    assert again.points == whole.points


def test_a_learner_is_taken_up_with_the_same_suggestions(tmp_path):
    inst = guarded()
    with begun(tmp_path / "whole") as journal:
        whole = campaign(journal, learner(inst), inst)
        whole.run(5)
    with begun(tmp_path / "broken") as journal, pytest.raises(KeyboardInterrupt):
        campaign(journal, learner(inst), Guard(Breaking(5, KeyboardInterrupt(), True))).run(5)
    with begun(tmp_path / "broken", resume=True) as journal:
        again = campaign(journal, learner(inst), inst)
        again.run(5)
        assert again.points == whole.points
    with begun(tmp_path / "broken", resume=True) as journal:
        with pytest.raises(JournalError, match="policy, seed or version are not the same"):
            campaign(journal, learner(inst, seed=9), inst)


def test_what_cannot_be_repeated_waits_for_somebody_to_look(tmp_path):
    def inst():
        return Guard(Breaking(2, LinkError("the cable"), True, repeatable=False))

    with begun(tmp_path) as journal, pytest.raises(LinkError):
        campaign(journal, inst=inst()).run(4)
    with begun(tmp_path, resume=True) as journal:
        with pytest.raises(InDoubt, match="step 1, pixel"):
            campaign(journal, inst=inst())
        journal.fail(1, "it was poled")
        loop = campaign(journal, inst=guarded())
        first = [p["_id"] for p in loop.points]
        loop.run(3)
        assert first == [0] and [p["_id"] for p in loop.points] == [0, 2, 3]


def test_a_journal_of_something_else(tmp_path):
    with begun(tmp_path) as journal:
        Recorded(guarded(), journal).acquire("pixel")
        with pytest.raises(JournalError, match="step 0, which no campaign suggested"):
            campaign(journal)


def test_points_that_cannot_be_reached_are_failures(tmp_path):
    inst = guarded(forbidden=lambda p: p["x"] > 3e-7)
    axes = inst.axes
    with begun(tmp_path) as journal:
        loop = campaign(journal, RandomPolicy(axes, seed=0), inst)
        with pytest.raises(InstrumentError, match="10 points in a row"):
            loop.run(50)
        reached = len(loop.points)
        assert all(p["x"] <= 3e-7 for p in loop.points)
    with begun(tmp_path, resume=True) as journal:
        loop = campaign(journal, RandomPolicy(axes, seed=0), guarded())
        assert len(loop.points) == reached
        loop.run(reached + 2)


def test_an_axis_that_the_instrument_has_not(tmp_path):
    inst = guarded()
    other = {"bias": inst.axes["x"]}
    with begun(tmp_path) as journal, pytest.raises(LimitError, match="no axis 'bias'; there are x"):
        campaign(journal, RandomPolicy(other), inst).run(3)
    assert inst.left == (np.inf, np.inf)


def test_a_mode_that_the_instrument_has_not(tmp_path):
    inst = guarded()
    with begun(tmp_path) as journal, pytest.raises(LimitError, match="nearest: pixel"):
        Campaign(inst, RandomPolicy(inst.axes), "pixl", height, journal)


def test_what_could_not_be_reduced_is_not_measured_twice(tmp_path):
    def fails_once(record):
        fails_once.calls += 1
        if fails_once.calls == 2:
            raise KeyError("amplitude")
        return height(record)

    fails_once.calls, inst = 0, guarded()
    with begun(tmp_path) as journal:
        loop = Campaign(inst, RandomPolicy(inst.axes), "pixel", fails_once, journal)
        with pytest.raises(KeyError, match="amplitude"):
            loop.run(3)
        loop.run(3)
        assert len(journal.steps) == 3
    with begun(tmp_path, resume=True) as journal:
        again = Campaign(inst, RandomPolicy(inst.axes), "pixel", height, journal)
        assert again.points == loop.points


def test_the_last_point_of_a_raster_is_measured_after_a_break(tmp_path):
    inst = guarded()
    with begun(tmp_path) as journal, pytest.raises(KeyboardInterrupt):
        broken = Guard(Breaking(2, KeyboardInterrupt(), False))
        campaign(journal, Raster(inst.axes, {"x": 2}), broken).run()
    with begun(tmp_path, resume=True) as journal:
        loop = campaign(journal, Raster(inst.axes, {"x": 2}), inst)
        assert loop.run() == "the raster is done" and len(loop.points) == 2


class Batches(RandomPolicy):
    """Remembers what it was told together."""

    def __init__(self, axes):
        super().__init__(axes, seed=1)
        self.told, self.failed = [], []

    def ingest(self, points):
        self.told.append([p["_id"] for p in points])

    def register_failures(self, suggestions):
        self.failed.append([p["_id"] for p in suggestions])


def test_a_batch_is_learnt_when_all_of_it_is_done(tmp_path):
    inst = guarded()
    with begun(tmp_path / "whole") as journal:
        policy = Batches(inst.axes)
        whole = campaign(journal, policy, inst, batch=3)
        whole.run(5)  # in the middle of the second one
        assert policy.told == [[0, 1, 2]] and len(whole.points) == 5
        whole.run(6)
        assert policy.told == [[0, 1, 2], [3, 4, 5]]
    with begun(tmp_path / "broken") as journal, pytest.raises(LinkError):
        device = Guard(Breaking(5, LinkError("the cable"), True))
        campaign(journal, Batches(inst.axes), device, batch=3).run(6)
    with begun(tmp_path / "broken", resume=True) as journal:
        policy = Batches(inst.axes)
        again = campaign(journal, policy, inst, batch=3)
        assert policy.told == [[0, 1, 2]] and len(again.points) == 4
        again.run(6)
        assert policy.told == [[0, 1, 2], [3, 4, 5]] and again.points == whole.points


def test_what_a_batch_could_not_reach_is_told_with_it(tmp_path):
    reached = guarded(forbidden=lambda p: p["x"] > 6e-7)
    with begun(tmp_path) as journal:
        policy = Batches(reached.axes)
        loop = campaign(journal, policy, reached, batch=4)
        loop.run(4)
        told, failed = (sorted(sum(lists, [])) for lists in (policy.told, policy.failed))
        assert failed and not set(told) & set(failed)
        assert [sorted(a + b) for a, b in zip(policy.told, policy.failed, strict=False)][0] == [
            *range(4)
        ]


def test_a_request_stops_it_in_the_middle_of_a_measurement(tmp_path):
    class Slow(Replay):
        def __init__(self):
            super().__init__(fields())
            self.begun, self.halt = threading.Event(), threading.Event()

        def acquire(self, mode, over=None):
            self.begun.set()
            if self.halt.wait(60.0):
                raise Aborted("halted")
            return super().acquire(mode, over)

        def stop(self):
            self.halt.set()

    device = Slow()

    def ask():
        device.begun.wait(60.0)
        request_stop(tmp_path)

    with begun(tmp_path) as journal:
        loop = campaign(journal, inst=Guard(device, patience=np.inf))
        thread = threading.Thread(target=ask)
        thread.start()
        assert loop.run(3) == "stopped on request" and device.halt.is_set()
        thread.join()
        assert len(journal.in_doubt) == 1
    with begun(tmp_path, resume=True) as journal:  # what was stopped half way is measured again
        assert campaign(journal).run(3) == "3 points are measured"
    with pytest.raises(ValueError, match="nothing is being measured"):
        request_stop(tmp_path)


def test_one_number_after_the_other_that_is_none(tmp_path):
    inst = guarded()
    with begun(tmp_path) as journal, pytest.raises(InstrumentError, match="10 points in a row"):
        Campaign(inst, RandomPolicy(inst.axes), "pixel", lambda r: np.nan, journal).run(50)


@pytest.mark.parametrize(
    ("counts", "message"),
    [({}, "is empty"), ({"x": 0}, "is empty"), ({"z": 3}, "no axis 'z'; there are x, y")],
)
def test_no_raster(counts, message):
    with pytest.raises(ValueError, match=message):
        Raster(guarded().axes, counts)


class Numpy(RandomPolicy):
    """Suggests what a table of NumPy holds."""

    made_of = staticmethod(lambda point: point)

    def suggest(self, num_points=None):
        return [self.made_of(p) for p in super().suggest(num_points)]


KINDS = {
    "numbers of NumPy": lambda p: {"_id": np.int64(p["_id"])} | {n: np.float32(p[n]) for n in "xy"},
    "arrays of one number": lambda p: {n: np.array(v) for n, v in p.items()},
    "ids of several parts": lambda p: p | {"_id": ("a", np.int8(p["_id"]), np.float64("nan"))},
}


@pytest.mark.parametrize("kind", KINDS)
def test_points_of_any_kind_of_number_are_taken_up(tmp_path, kind):
    def policy(inst):
        found = Numpy(inst.axes, seed=1)
        found.made_of = KINDS[kind]
        return found

    inst = guarded()
    with begun(tmp_path) as journal:
        campaign(journal, policy(inst), inst).run(2)
    with begun(tmp_path, resume=True) as journal:
        loop = campaign(journal, policy(inst), inst)
        assert len(loop.points) == 2
        loop.run(3)


def test_a_point_that_could_not_be_taken_up_is_not_measured(tmp_path):
    inst = guarded()
    policy = Numpy(inst.axes)
    policy.made_of = lambda p: p | {"x": decimal.Decimal("3e-7")}
    with begun(tmp_path) as journal:
        with pytest.raises(JournalError, match="Decimal, which JSON does not hold"):
            campaign(journal, policy, inst).run(2)
        assert journal.lines == []
