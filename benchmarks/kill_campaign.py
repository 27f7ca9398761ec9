"""Does `kill -9` lose a measurement? A campaign is killed again and again, and taken up each time.

    python benchmarks/kill_campaign.py [--kills 100] [--points 12] [--seed 0]

A process measures random points of a made-up map through Guard, Journal and Campaign. It kills
itself at a write that is drawn by lot: before a line or an array is on the disk, after it, between
the name of a file and the line that tells of it. Each point that it has done it tells through a
pipe. The parent looks for all of them in the journal, takes the campaign up in a new process, and
compares the end with that of a campaign which nobody has disturbed. Prints one JSON line.
"""

import argparse
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from micjax.active.campaign import Campaign, RandomPolicy
from micjax.instruments import Guard, Journal, Replay, records
from micjax.io import Axis, Field

CONFIGURATION = {"what": "a made-up map"}


def instrument():
    y, x = (Axis(n, np.linspace(0.0, 1000.0, 64), "nm") for n in ("y", "x"))
    height = np.random.default_rng(0).normal(size=(64, 64))
    return Guard(Replay([Field(height, (y, x), "m", "height")]))


def campaign(folder: pathlib.Path, points: int, told=None) -> None:
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


def killed(folder: pathlib.Path, points: int, at: int) -> tuple[int, bool]:
    """Runs it in a process that dies at `at`; how many points it told of, and whether it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        count = 0

        def counted(function):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == at:  # before it
                    os.kill(os.getpid(), signal.SIGKILL)
                found = function(*arguments, **options)
                count += 1
                if count == at:  # or after it
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            return call

        os.fsync, os.replace = counted(os.fsync), counted(os.replace)
        status = 1
        try:
            campaign(folder, points, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    told = 0
    while part := os.read(reading, 4096):
        told += len(part)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"the campaign in {folder} failed")
    return told, os.WIFSIGNALED(status)


def results(folder: pathlib.Path) -> list[tuple[dict, float]]:
    """Where and what, of every record."""
    if not (folder / "journal.jsonl").exists() or not (folder / "journal.jsonl").stat().st_size:
        return []
    return [(r.at, float(r.data["height"])) for _, r in records(folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--points", type=int, default=12, help="of each campaign")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, begun = np.random.default_rng(given.seed), time.perf_counter()
    kills = lost = campaigns = not_prefix = not_equal = 0
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        campaign(root / "whole", given.points)
        whole = results(root / "whole")
        while kills < given.kills:
            folder, died, before = root / f"{campaigns:04d}", True, 0
            while died:
                told, died = killed(folder, given.points, int(rng.integers(1, 60)))
                kills += died
                found = results(folder)
                lost += max(0, before + told - len(found))
                not_prefix += found != whole[: len(found)]
                before = len(found)
            not_equal += found != whole
            campaigns += 1
    print(
        json.dumps(
            {
                "name": f"kill -9 of a campaign of {given.points} points",
                "value": lost,
                "unit": "results lost",
                "peer": None,
                "peer_value": None,
                "ratio": None,
                "kills": kills,
                "campaigns": campaigns,
                "journals_that_are_no_prefix": not_prefix,
                "ends_that_differ": not_equal,
                "seconds": round(time.perf_counter() - begun, 1),
                "note": f"each at a write drawn by lot (seed {given.seed}); Python "
                f"{sys.version.split()[0]}",
            }
        )
    )


if __name__ == "__main__":
    main()
