"""Does `kill -9` lose work? Plans are killed again and again, and taken up each time.

    python benchmarks/kill_campaign.py [--kills 100] [--kinds explore,solve] [--seed 0]

`explore`: random points of a made-up map through Guard, Journal and Campaign. The process kills
itself at a write that is drawn by lot: before a line or an array is on the disk, after it, between
the name of a file and the line that tells of it. Each point that it has done it tells through a
pipe. Lost is what it told of and the journal has not.

`solve`, `simulate`: commands of `micjax`, killed at a moment drawn by lot, or at a write, and gone
on with by `--resume`. Lost is a run that begins anew where it had a checkpoint, or whose values in
the end are not those of one that nobody has disturbed.

Every process is a fork of one that has imported everything and has begun no thread; what one has
compiled the next one reads. Prints one JSON line for each kind.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import h5py
import jax
import numpy as np

import micjax.__main__ as command_line
import micjax.problems.edge
import micjax.problems.resonance  # noqa: F401  # imported here, so that no process does it again
import micjax.report  # noqa: F401
from micjax.active.campaign import Campaign, RandomPolicy
from micjax.instruments import Guard, Journal, Replay, records
from micjax.io import Field, FieldAxis

CONFIGURATION = {"what": "a made-up map"}
WRITES = 60  # of a process, before and after each of which it may be killed
REFUSED = 2  # the exit status of a command that cannot begin
COMMANDS = {
    "solve": (
        ["demo", "edge", "--set", "engine.steps=1500", "--set", "engine.tolerance=0"],
        ["demo", "resonance"],
    ),
    "simulate": (
        ["simulate", "cbed", "{crystal}", "--set", "tile=[2,2,2]", "--set", "phonons=4"]
        + ["--set", "sampling_A=0.15", "--set", "u_A2=0.006"],
    ),
}
CRYSTAL = """5
Lattice="3.905 0 0 0 3.905 0 0 0 3.905" Properties=species:S:1:pos:R:3 pbc="T T T"
Sr 0 0 0
Ti 1.9525 1.9525 1.9525
O 1.9525 1.9525 0
O 1.9525 0 1.9525
O 0 1.9525 1.9525
"""


# --- processes that die ---------------------------------------------------------------------------


def killed(work: Callable[[], int], at_write: int, after_s: float) -> int | None:
    """Does some work in a process that dies at its n-th write or after some seconds.

    **Returns:** its exit status, or None if it was killed.
    """
    child = os.fork()
    if child == 0:
        _dies_at(at_write)
        status = 1
        try:
            status = work()
        finally:
            os._exit(status)
    until = time.monotonic() + after_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            until = np.inf
        time.sleep(0.001)


def _dies_at(write: int) -> None:
    count = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal count
            for when in ("before", "after"):
                count += 1
                if count == write:
                    os.kill(os.getpid(), signal.SIGKILL)
                if when == "before":
                    found = function(*arguments, **options)
            return found

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


# --- explore --------------------------------------------------------------------------------------


def instrument():
    y, x = (FieldAxis(n, np.linspace(0.0, 1000.0, 64), "nm") for n in ("y", "x"))
    height = np.random.default_rng(0).normal(size=(64, 64))
    return Guard(Replay([Field(height, (y, x), "m", "height")]))


def campaign(folder: pathlib.Path, points: int, told=None) -> int:
    """The whole campaign, or what is left of it."""
    device = instrument()
    with Journal(folder, CONFIGURATION, resume=(folder / "journal.jsonl").exists()) as journal:
        loop = Campaign(
            device,
            RandomPolicy(device.axes, seed=1),
            "pixel",
            lambda record: float(record.data["height"]),
            journal,
            outcome="height",
        )
        while len(loop.points) < points:
            loop.run(len(loop.points) + 1)
            if told is not None:
                os.write(told, b".")
    return 0


def results(folder: pathlib.Path) -> list[tuple[dict, float]]:
    """Where and what, of every record."""
    path = folder / "journal.jsonl"
    if not path.exists() or b"\n" not in path.read_bytes():
        return []
    return [(r.at, float(r.data["height"])) for _, r in records(folder)]


def explored(root: pathlib.Path, kills: int, points: int, rng) -> dict[str, int]:
    found = dict.fromkeys(("kills", "runs", "lost", "no_prefix", "ends_that_differ"), 0)
    campaign(root / "whole", points)
    whole = results(root / "whole")
    while found["kills"] < kills:
        folder, status, before = root / f"{found['runs']:04d}", None, 0
        while status is None:
            reading, writing = os.pipe()
            work = _bound(campaign, folder, points, writing)
            status = killed(work, int(rng.integers(1, WRITES)), np.inf)
            os.close(writing)
            with open(reading, "rb") as pipe:
                told = len(pipe.read())
            if status:
                raise SystemExit(f"the campaign in {folder} failed")
            found["kills"] += status is None
            there = results(folder)
            found["lost"] += max(0, before + told - len(there))
            found["no_prefix"] += there != whole[: len(there)]
            before = len(there)
        found["ends_that_differ"] += there != whole
        found["runs"] += 1
    return found


def _bound(function, *arguments):
    return lambda: function(*arguments)


# --- commands -------------------------------------------------------------------------------------


def told(argv: list[str], log: pathlib.Path) -> int:
    """A command of micjax, its words in a file."""
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        print("micjax", *argv, file=file, flush=True)
        return command_line.main(argv)


def numbers(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All numbers of the values and results in a folder, by name."""
    found = {}
    for path in sorted([*folder.glob("values.h5"), *folder.glob("*.nxs")]):
        with h5py.File(path) as file:

            def keep(name, item, path=path):
                if isinstance(item, h5py.Dataset) and item.dtype.kind in "iufc":
                    found[f"{path.name}/{name}"] = item[()]

            file.visititems(keep)
    return found


def alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        np.allclose(v, other[n], rtol=1e-5, atol=1e-5 * np.max(np.abs(v), initial=0.0))
        for n, v in one.items()
    )


def steps(folder: pathlib.Path) -> list[int]:
    """The steps after which there was a checkpoint, in the order in which they were done."""
    with contextlib.suppress(OSError, ValueError):
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(row)["steps"] for row in rows]
    return []


def commanded(root: pathlib.Path, kind: str, kills: int, rng) -> dict[str, int]:
    names = ("kills", "runs", "lost", "begun_anew", "ends_that_differ", "could_not_be_resumed")
    found, crystal = dict.fromkeys(names, 0), root / "crystal.xyz"
    crystal.write_text(CRYSTAL)
    commands = [[a.format(crystal=crystal) for a in argv] for argv in COMMANDS[kind]]
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    whole, seconds = [], []
    for i, argv in enumerate(commands):
        for _ in range(2):  # the second time nothing is compiled
            shutil.rmtree(root / f"whole{i}", ignore_errors=True)
            begun = time.monotonic()
            out = ["--out", str(root / f"whole{i}")]
            if killed(_bound(told, argv + out, root / "whole.txt"), 0, np.inf) != 0:
                raise SystemExit((root / "whole.txt").read_text())
        seconds.append(time.monotonic() - begun)
        whole.append(numbers(root / f"whole{i}"))
    while found["kills"] < kills:
        which = found["runs"] % len(commands)
        folder, log = root / f"{found['runs']:04d}", root / f"{found['runs']:04d}.txt"
        argv, resumed, status = [*commands[which], "--out", str(folder)], [], None
        while status is None:
            write = int(rng.integers(1, WRITES)) if rng.random() < 0.5 else 0
            after_s = np.inf if write else float(rng.uniform(0.0, 1.1 * seconds[which]))
            before = steps(folder)
            status = killed(_bound(told, argv + resumed, log), write, after_s)
            found["kills"] += status is None
            if status == REFUSED and resumed:  # there was nothing yet to go on with
                found["could_not_be_resumed"] += bool(before)
                shutil.rmtree(folder, ignore_errors=True)
                status, resumed = None, []
                continue
            if status:
                raise SystemExit(log.read_text())
            now = steps(folder)
            anew = bool(resumed and before and now[len(before) :] and now[len(before)] < before[-1])
            found["begun_anew"] += anew or now[: len(before)] != before
            resumed = ["--resume"] if folder.exists() else []
        found["ends_that_differ"] += not alike(whole[which], numbers(folder))
        found["runs"] += 1
    found["lost"] = sum(found[n] for n in names[3:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of all kinds together")
    parser.add_argument("--kinds", default="explore,solve", help="explore, solve, simulate")
    parser.add_argument("--points", type=int, default=12, help="of each exploration")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kinds, rng = given.kinds.split(","), np.random.default_rng(given.seed)
    if unknown := set(kinds) - {"explore", *COMMANDS}:
        parser.error(f"no kinds {', '.join(unknown)}; there are explore, {', '.join(COMMANDS)}")
    for kind in kinds:
        begun, kills = time.perf_counter(), -(-given.kills // len(kinds))
        with tempfile.TemporaryDirectory() as name:
            if kind == "explore":
                found = explored(pathlib.Path(name), kills, given.points, rng)
            else:
                found = commanded(pathlib.Path(name), kind, kills, rng)
        note = f"seed {given.seed}; Python {sys.version.split()[0]}"
        line = {"name": f"kill -9 of {kind}", "value": found.pop("lost"), "unit": "lost"}
        line |= {"peer": None, "peer_value": None, "ratio": None, **found}
        print(json.dumps(line | {"seconds": round(time.perf_counter() - begun, 1), "note": note}))


if __name__ == "__main__":
    main()
