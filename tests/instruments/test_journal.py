"""Nothing that was measured is lost, and nothing is measured that could not be written."""

import dataclasses
import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from test_instruments import fields

from micjax.__main__ import main
from micjax.instruments import (
    Aborted,
    Frame,
    Guard,
    InDoubt,
    Journal,
    JournalError,
    LimitError,
    Recorded,
    Replay,
    check_instrument,
    consolidate,
    records,
)
from micjax.instruments.journal_reader import being_written
from micjax.io import read_nexus

CONFIGURATION = {"file": "made up", "limits": {"x": [0.0, 1.0]}}
FRAME = Frame((0.5e-6, 0.5e-6), (0.4e-6, 0.3e-6), (2, 3))


class Poling(Replay):
    """A spectrum changes the sample."""

    def __init__(self):
        super().__init__(fields())
        self.stopped = 0
        once = self.modes["spectrum"].__class__("point", {"loop": "V"}, repeatable=False)
        self.modes = {**self.modes, "spectrum": once}

    def stop(self):
        self.stopped += 1


@pytest.fixture
def inst():
    return Poling()


def begun(folder, **options):
    return Journal(folder / "run", CONFIGURATION, **options)


def test_what_is_recorded_comes_back(inst, tmp_path):
    with begun(tmp_path, seed=3) as journal:
        recorded = Recorded(inst, journal)
        recorded.move({"x": 4e-7, "y": 3e-7})
        made = [
            recorded.acquire("spectrum"),
            recorded.acquire("image", FRAME),
            recorded.acquire("line", FRAME.points()[0]),
        ]
        with pytest.raises(LimitError):
            recorded.acquire("imge")
        assert journal.in_doubt == []
    found = list(records(tmp_path / "run"))
    assert [step.intent["mode"] for step, _ in found] == ["spectrum", "image", "line"]
    for (_, record), first in zip(found, made, strict=True):
        assert record.at == first.at and record.units == first.units and record.dims == first.dims
        assert (record.t0, record.t1) == (first.t0, first.t1)
        for name, values in first.data.items():
            np.testing.assert_array_equal(record.data[name], values)
        for name, (values, unit) in first.coords.items():
            np.testing.assert_array_equal(record.coords[name][0], values)
            assert record.coords[name][1] == unit


def test_a_recorded_instrument_conforms(tmp_path):
    with begun(tmp_path) as journal:
        assert check_instrument(Recorded(Guard(Replay(fields())), journal))


def test_one_writer(tmp_path):
    with begun(tmp_path), pytest.raises(JournalError, match="another process writes"):
        begun(tmp_path, resume=True)
    begun(tmp_path, resume=True).close()


def test_taking_up(inst, tmp_path):
    with pytest.raises(JournalError, match="no journal in .* to resume"):
        begun(tmp_path, resume=True)
    with begun(tmp_path) as journal:
        Recorded(inst, journal).acquire("pixel")
    with pytest.raises(JournalError, match="is there already"):
        begun(tmp_path)
    other = {**CONFIGURATION, "limits": {"x": [0.0, 2.0]}}
    with pytest.raises(JournalError, match="limits: .* then, .*2.0.* now"):
        Journal(tmp_path / "run", other, resume=True)
    with pytest.raises(JournalError, match="another seed: 0 then, 7 now"):
        begun(tmp_path, seed=7, resume=True)
    with begun(tmp_path, resume=True) as journal:
        Recorded(inst, journal).acquire("pixel")
        assert [step.index for step in journal.steps] == [0, 1]


def test_a_torn_line_is_cut_away_and_a_broken_one_is_told(inst, tmp_path):
    with begun(tmp_path) as journal:
        Recorded(inst, journal).acquire("pixel")
    with open(journal.path, "ab") as file:
        file.write(b'{"kind": "intent", "index": 1, "at')
    assert len(list(records(tmp_path / "run"))) == 1
    with begun(tmp_path, resume=True) as journal:
        Recorded(inst, journal).acquire("pixel")
    assert len(list(records(tmp_path / "run"))) == 2
    lines = journal.path.read_bytes().split(b"\n")
    lines[2] = lines[2][:20]
    journal.path.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match="line 3"):
        begun(tmp_path, resume=True)


def test_what_was_begun_and_not_ended_is_in_doubt(inst, tmp_path, monkeypatch):
    def broken(mode, over=None):
        raise Aborted("half way")

    monkeypatch.setattr(inst, "acquire", broken)
    with begun(tmp_path) as journal:
        recorded = Recorded(inst, journal)
        for mode in ("pixel", "spectrum"):
            with pytest.raises(Aborted):
                recorded.acquire(mode)
    monkeypatch.undo()
    with begun(tmp_path, resume=True) as journal:
        with pytest.raises(InDoubt, match="step 1, spectrum at x = 6e-07, y = 5e-07"):
            Recorded(inst, journal)
        journal.fail(1, "looked: nothing happened")
        assert Recorded(inst, journal).acquire("spectrum")  # the pixel may be measured again


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_full_disk_stops_the_instrument(inst, tmp_path, monkeypatch, call):
    """At the intent, the arrays, their folder, the result: what came before is there."""
    with begun(tmp_path) as journal:
        recorded = Recorded(inst, journal)
        recorded.acquire("pixel")
        calls, sync = [], os.fsync

        def full(number):
            calls.append(number)
            if len(calls) == call:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(number)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match="the disk is full"):
            recorded.acquire("pixel")
        monkeypatch.undo()
        assert inst.stopped == 1
        with pytest.raises(JournalError, match="take it up anew"):  # a line may be torn
            recorded.acquire("pixel")
    assert len(list(records(tmp_path / "run"))) == (2 if call == 4 else 1)
    with begun(tmp_path, resume=True) as journal:
        assert Recorded(inst, journal).acquire("pixel")


def test_half_a_line_is_cut_away_by_the_next(inst, tmp_path):
    with begun(tmp_path) as journal:
        recorded = Recorded(inst, journal)
        recorded.acquire("pixel")
        whole = journal._file

        class Half:
            def write(self, data):
                whole.write(bytes(data)[:10])
                raise OSError(errno.ENOSPC, "No space left on device")

        journal._file = Half()
        with pytest.raises(JournalError, match="the disk is full"):
            recorded.acquire("pixel")
        journal._file = whole
    with begun(tmp_path, resume=True) as journal:
        Recorded(inst, journal).acquire("pixel")
    assert len(list(records(tmp_path / "run"))) == 2


def test_a_first_line_that_was_torn_is_no_journal(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.jsonl").write_bytes(b'{"kind": "beg')
    begun(tmp_path).close()
    begun(tmp_path, resume=True).close()


def test_metadata_of_any_kind_cost_no_record(inst, tmp_path, monkeypatch):
    measure = inst.acquire

    def with_more(mode, over=None):
        more = {"gains": np.arange(2.0), "count": np.int64(3), "where": tmp_path}
        return dataclasses.replace(measure(mode, over), meta=more)

    monkeypatch.setattr(inst, "acquire", with_more)
    with begun(tmp_path) as journal:
        Recorded(inst, journal).acquire("pixel")
    ((_, record),) = records(tmp_path / "run")
    assert record.meta == {"gains": [0.0, 1.0], "count": 3, "where": str(tmp_path)}


def test_metadata_that_are_no_mapping_cost_no_record(inst, tmp_path, monkeypatch):
    """It was measured, and not in the journal."""
    record = inst.acquire("pixel")
    object.__setattr__(record, "meta", None)
    monkeypatch.setattr(inst, "acquire", lambda mode, over=None: record)
    with begun(tmp_path) as journal:
        Recorded(inst, journal).acquire("pixel")
    ((_, record),) = records(tmp_path / "run")
    assert record.meta == {}


@pytest.mark.parametrize("line", ["5", "[]", '{"suggested": []}'])
def test_files_that_are_no_journal_of_an_instrument(tmp_path, line):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.jsonl").write_text(line + "\n")
    with pytest.raises(JournalError, match="no entry of a journal|does not begin as a journal"):
        begun(tmp_path, resume=True)
    with pytest.raises(JournalError, match="no entry of a journal|no journal of an instrument"):
        list(records(tmp_path / "run"))


def test_no_journal_there(tmp_path):
    with pytest.raises(ValueError, match="the configuration is written as JSON"):
        Journal(tmp_path, {"x": np.arange(3)})
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="no journal can be written"):
        Journal(tmp_path / "file", {})


def test_only_what_is_in_doubt_can_be_given_up(inst, tmp_path):
    """A second result would hide the first one."""
    with begun(tmp_path) as journal:
        Recorded(inst, journal).acquire("pixel")
        for index in (0, 7):
            with pytest.raises(ValueError, match=f"step {index} is not in doubt"):
                journal.fail(index, "a slip")
    assert len(list(records(tmp_path / "run"))) == 1


def test_a_file_that_was_changed_is_told(inst, tmp_path):
    with begun(tmp_path) as journal:
        Recorded(inst, journal).acquire("pixel")
    path = tmp_path / "run" / "records" / "000000.npz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JournalError, match="sha256 differs"):
        list(records(tmp_path / "run"))
    path.unlink()
    with pytest.raises(JournalError, match="is missing"):
        list(records(tmp_path / "run"))


def test_consolidated_at_any_time(inst, tmp_path):
    with begun(tmp_path) as journal:
        recorded = Recorded(inst, journal)
        with pytest.raises(JournalError, match="no records yet"):
            consolidate(tmp_path / "run", tmp_path / "all.nxs")
        for x in (2e-7, 8e-7):
            recorded.move({"x": x})
            recorded.acquire("spectrum")
        recorded.acquire("image", FRAME)
        assert consolidate(tmp_path / "run", tmp_path / "all.nxs") == 3
    found = read_nexus(tmp_path / "all.nxs")
    loops = found["spectrum_loop"]
    assert loops.data.shape == (2, 4) and [a.name for a in loops.axes] == ["step", "bias"]
    np.testing.assert_allclose(found["spectrum_at_x"].data, [2e-7, 8e-7])
    assert found["spectrum_at_x"].unit == "m"
    assert found["image_height"].data.shape == (1, 2, 3)


def test_consolidated_from_the_command_line(inst, tmp_path, capsys):
    with begun(tmp_path) as journal:
        Recorded(inst, journal).acquire("pixel")
    assert main(["consolidate", str(tmp_path / "run")]) == 0
    assert "1 records" in capsys.readouterr().out
    assert "pixel_height" in read_nexus(tmp_path / "run" / "records.nxs")
    assert main(["consolidate", str(tmp_path)]) == 2
    assert "no journal of an instrument in" in capsys.readouterr().err


KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[2])
from test_instruments import fields
from micjax.instruments import Journal, Recorded, Replay

def run(folder, kill_at):
    write, calls = os.fsync, []
    def counted(number):
        calls.append(number)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        write(number)
    os.fsync = counted
    with Journal(folder, {"a": 1}, resume=folder.exists()) as journal:
        recorded = Recorded(Replay(fields()), journal)
        while sum(s.result is not None for s in journal.steps) < 3:
            recorded.move({"x": 1e-7 * len(journal.steps)})
            recorded.acquire("pixel")

for kill_at in range(1, 15):
    folder = pathlib.Path(sys.argv[1]) / str(kill_at)
    child = os.fork()
    if child == 0:
        run(folder, kill_at)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_killed_at_every_write_no_result_is_lost(tmp_path):
    """Killed at each fsync in turn: the journal is read, taken up, and ends as it would have."""
    here = os.path.dirname(__file__)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), here], check=True, timeout=120)
    told = []
    for kill_at in range(1, 15):
        folder = tmp_path / str(kill_at)
        before = list(records(folder)) if (folder / "journal.jsonl").stat().st_size else []
        told.append(len(before))
        with Journal(folder, {"a": 1}, resume=True) as journal:
            recorded = Recorded(Replay(fields()), journal)
            while sum(step.result is not None for step in journal.steps) < 3:
                recorded.acquire("pixel")
        after = list(records(folder))
        assert len(after) == 3
        for (_, old), (_, new) in zip(before, after, strict=False):
            np.testing.assert_array_equal(old.data["height"], new.data["height"])
    # one step more is safe after every four writes: intent, arrays, their folder, result
    assert told == sorted(told) and told[0] == 0 and told[-1] == 3


# --- what is lost, changed, or cannot be written --------------------------------------------------


def three(folder):
    with begun(folder) as journal:
        recorded = Recorded(Replay(fields()), journal)
        for x in (2e-7, 4e-7, 8e-7):
            recorded.move({"x": x})
            recorded.acquire("pixel")
    return journal.path


DAMAGES = {
    "a line is missing": lambda lines: lines[:3] + lines[4:],
    "a step is missing": lambda lines: lines[:3] + lines[5:],
    "lines are missing at the end": lambda lines: lines[:-2],
    "the first line is missing": lambda lines: lines[1:],
    "two lines are exchanged": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "a line is there twice": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "another place": lambda lines: [line.replace(b"4e-07", b"5e-07") for line in lines],
    "another configuration": lambda lines: [line.replace(b"made up", b"made in") for line in lines],
    "a line without a checksum": lambda lines: [
        *lines,
        b'{"kind": "unreachable", "reason": "no"}\n',
    ],
    "no checksums": lambda lines: [b"%s}\n" % line.rpartition(b', "chain"')[0] for line in lines],
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_journal_that_was_changed_is_told(tmp_path, what):
    path = three(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(DAMAGES[what](lines)))
    for looks in (lambda: begun(tmp_path, resume=True), lambda: list(records(tmp_path / "run"))):
        with pytest.raises(JournalError):
            looks()
    path.write_bytes(b"".join(lines))
    assert len(list(records(tmp_path / "run"))) == 3
    begun(tmp_path, resume=True).close()


def test_a_journal_of_before_there_were_checksums_goes_on_with_them(tmp_path, caplog):
    path = three(tmp_path)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(b"%s}\n" % line.rpartition(b', "chain"')[0] for line in lines))
    path.with_suffix(".end").unlink()
    with begun(tmp_path, resume=True) as journal:
        assert "the first 7 lines are of before there were checksums" in caplog.text
        Recorded(Replay(fields()), journal).acquire("pixel")
    assert len(list(records(tmp_path / "run"))) == 4
    path.write_bytes(path.read_bytes().replace(b"4e-07", b"5e-07"))
    with pytest.raises(JournalError, match="line 8: its checksum"):
        begun(tmp_path, resume=True)


def test_no_second_writer_whatever_is_removed(inst, tmp_path):
    with begun(tmp_path) as journal:
        for path in (tmp_path / "run").iterdir():
            if path.is_file() and path.name != "journal.jsonl":
                path.unlink()
        with pytest.raises(JournalError, match="another process writes"):
            begun(tmp_path, resume=True)
        assert being_written(tmp_path / "run")
        recorded = Recorded(inst, journal)
        recorded.acquire("pixel")
        journal.path.rename(tmp_path / "moved")
        with pytest.raises(JournalError, match="was removed or replaced"):
            recorded.acquire("pixel")
        assert inst.stopped == 1
    assert not being_written(tmp_path / "run")


class Unprintable:
    def __str__(self):
        raise RuntimeError("no text")


def test_a_record_is_not_lost_by_what_it_holds(inst, tmp_path, monkeypatch):
    """Keys that are no text, numbers of NumPy, objects, what has no end."""
    endless = {}
    endless["self"] = endless
    names = np.array(["here", 3, None], dtype=object)
    counts = np.array([1, 2, 3], dtype=object)
    measure, old = inst.acquire, {}

    def with_more(mode, over=None):
        old["record"] = record = measure(mode, over)
        meta = {(1, 2): np.int64(3), np.int64(7): 1, 7: {"a": np.float32(0.5)}, "7": b"seven"} | {
            "endless": endless,
            "bad": Unprintable(),
            "c": 1 + 2j,
            "list": (np.bool_(True),),
        }
        coords = {"names": (names, ""), "counts": (counts, "m"), "rows": ([[1], [2, 3]], "")}
        at = {n: np.float32(v) for n, v in record.at.items()}
        changed = dataclasses.replace(record)
        changed.__dict__.update(meta=meta, coords=coords, at=at)  # as an adapter may have them
        return changed

    monkeypatch.setattr(inst, "acquire", with_more)
    with begun(tmp_path) as journal:
        Recorded(inst, journal).acquire("pixel")
    monkeypatch.undo()
    ((_, record),) = records(tmp_path / "run")
    assert record.meta["(1, 2)"] == 3 and record.meta["7"] == {"a": 0.5}
    assert record.meta["7 (str)"] == "b'seven'"
    assert record.meta["list"] == [True] and record.meta["c"] == "(1+2j)"
    assert record.coords["names"][0].tolist() == ["here", "3", "None"]
    np.testing.assert_array_equal(record.coords["counts"][0], [1, 2, 3])
    assert record.data["height"] == old["record"].data["height"]
    with begun(tmp_path, resume=True) as journal:
        Recorded(inst, journal).acquire("pixel")
    assert consolidate(tmp_path / "run", tmp_path / "all.nxs") == 2


def test_whatever_keeps_a_record_from_the_disk_stops_the_instrument(inst, tmp_path, monkeypatch):
    def breaks(*arguments, **options):
        raise MemoryError("no room")

    with begun(tmp_path) as journal:
        recorded = Recorded(inst, journal)
        monkeypatch.setattr(np, "savez", breaks)
        with pytest.raises(MemoryError):
            recorded.acquire("pixel")
        assert inst.stopped == 1
        with pytest.raises(JournalError, match="take it up anew"):
            recorded.acquire("pixel")


def test_a_configuration_with_NaN_is_the_same_again(tmp_path):
    Journal(tmp_path / "run", {"level": float("nan")}, seed=3).close()
    Journal(tmp_path / "run", {"level": float("nan")}, seed=3, resume=True).close()
