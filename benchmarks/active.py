"""Speed and regret of the active learner, beside BoTorch and GPax.

    python benchmarks/active.py [--quick] [--peers BOTORCH_PYTHON GPAX_PYTHON] [--only PART ...]

    python benchmarks/active.py --table benchmarks/results/active-amd-epyc.jsonl

One JSON object a line: name, value, unit, peer, peer_value, ratio = value / peer_value, note.
`active_peers/` has one program for each side, run by its own interpreter (the peers need other
versions of jax than we do; the variables BOTORCH_PYTHON and GPAX_PYTHON name them as well). A peer
without an interpreter is skipped and named on stderr. A side measures when it is told to: the sides
take turns, repeat by repeat and step by step, so that all of them meet the same load, and all run
on the same one core. Times are CPU times, which on one core are the wall times of an idle machine.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

SIDES = pathlib.Path(__file__).parent / "active_peers"
sys.path.insert(0, str(SIDES))
import problems  # noqa: E402

PEERS = ("botorch", "gpax")
OURS = ("Matérn", "RBF")  # where both of our kernels are measured
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

Samples = list[dict]


def one_core() -> None:
    """Whatever this process starts runs on one core, in one thread of BLAS."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def machine() -> str:
    """The processor, as Linux has it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, 1 core, float64 (gpax float32)"


class Side:
    """A program at work on one task."""

    def __init__(self, python: str, side: str, *task):
        self.command = [python, str(SIDES / f"{side}_side.py"), *map(str, task)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(self.command, **pipes)

    def measure(self) -> dict:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"no answer from {' '.join(self.command)}")
        return json.loads(line)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


class Bench:
    """Runs the sides in turns and prints the rows."""

    def __init__(self, pythons: dict[str, str], quick: bool, out=None):
        self.pythons, self.quick, self.out = pythons, quick, out or sys.stdout
        self.machine = machine()

    def measure(
        self, tasks: dict[str, Sequence], repeats: int, warm_up: int = 0, every: dict | None = None
    ) -> dict[str, Samples]:
        """Measurements of each task, `{label: (side, task, argument, ...)}`, taken in turns.

        `every`: a label that has its turn only once in so many rounds.
        """
        every = every or {}
        with contextlib.ExitStack() as stack:
            sides = {}
            for label, (side, *task) in tasks.items():
                if side in self.pythons:
                    sides[label] = Side(self.pythons[side], side, *task)
                    stack.callback(sides[label].close)
            samples: dict[str, Samples] = {label: [] for label in sides}
            for turn in range(-warm_up, repeats):
                for label, side in sides.items():
                    if turn % every.get(label, 1) == 0:
                        sample = side.measure()
                        samples[label] += [sample] if turn >= 0 else []
        return samples

    def row(self, name, value, unit, peer=None, peer_value=None, note=""):
        known = value is not None and peer_value and unit != "nats"
        line = {
            "name": name,
            "value": short(value),
            "unit": unit,
            "peer": peer,
            "peer_value": short(peer_value),
            "ratio": short(value / peer_value, 3) if known else None,
            "note": f"{note}; {self.machine}" if note else self.machine,
        }
        print(json.dumps(line, ensure_ascii=False), file=self.out, flush=True)

    def rows(self, name, value, unit, peers: dict, notes=None, bars=None):
        """One line a peer, or one without a peer.

        `notes` of a peer, and of "" for all; `bars`: the ratio that a peer is to stay below.
        """
        notes, bars = notes or {}, bars or {}
        for peer, theirs in peers.items():
            bar = bars.get(peer.split(",")[0])
            wanted = "" if bar is None else f"bar: ratio at most {bar:.3g}"
            note = "; ".join(filter(None, [wanted, notes.get(""), notes.get(peer)]))
            self.row(name, value, unit, peer, theirs, note)
        if not peers:
            self.row(name, value, unit, note=notes.get("", ""))

    def time_rows(
        self, name, found: dict[str, Samples], ours: str, bars: dict, note="", mean=False
    ):
        """CPU times: medians, or means where one step is unlike the next."""
        middle = statistics.fmean if mean else statistics.median
        times = {k: 1e3 * middle([s["cpu_s"] for s in v]) for k, v in found.items()}
        notes = {k: f"{k}: {spread(v)}" for k, v in found.items() if k != ours}
        notes[""] = "; ".join(filter(None, [note, spread(found[ours])]))
        self.rows(name, times.pop(ours), "ms", times, notes, bars)


def short(value, digits: int = 4):
    return None if value is None else float(f"{value:.{digits}g}")


def spread(samples: Samples) -> str:
    cpu, wall = ([1e3 * s[k] for s in samples] for k in ("cpu_s", "wall_s"))
    return (
        f"CPU {min(cpu):.3g} to {max(cpu):.3g} ms in {len(cpu)} calls, "
        f"wall {statistics.median(wall):.3g} ms"
    )


# --- the parts ----------------------------------------------------------------------------------


def fit(bench: Bench) -> None:
    """BoTorch has RBF by default; GPax has no default, the example of viGP has Matérn."""
    for count in (100,) if bench.quick else (100, 200, 500, 1000):
        tasks = {
            "Matérn": ("micjax", "fit", count, "matern"),
            "RBF": ("micjax", "fit", count, "rbf"),
            "botorch, RBF": ("botorch", "fit", count),
            "gpax viGP, Matérn": ("gpax", "fit", count),
        }
        found = bench.measure(tasks, 2 if bench.quick else 5, warm_up=1)
        theirs = {k: v for k, v in found.items() if k not in OURS}
        for ours in OURS:
            name = f"cold fit and prediction of 2,500 points, N = {count}, {ours}"
            bars = {"botorch": 1.0, "gpax viGP": 0.1}
            bench.time_rows(name, {ours: found[ours], **theirs}, ours, bars)
            note = {"": "on 2,500 points without noise"}
            values = {k: v[-1]["rmse"] for k, v in theirs.items()}
            mine = found[ours][-1]
            name = f"RMSE, N = {count}, {ours}"
            bench.rows(name, mine["rmse"], "y", values, note, {"gpax viGP": 1.0})
            note = {"": "of 500 held-out data; none where a variance is not positive; not a ratio"}
            values = {k: v[-1]["nlpd"] for k, v in theirs.items()}
            bench.rows(f"NLPD, N = {count}, {ours}", mine["nlpd"], "nats", values, note)


def refit(bench: Bench) -> None:
    for count in (100,) if bench.quick else (100, 200, 500, 1000):
        tasks = {
            "Matérn": ("micjax", "refit", count, "matern"),
            "RBF": ("micjax", "refit", count, "rbf"),
            "botorch, cold or warm": ("botorch", "refit", count),
            "gpax viGP": ("gpax", "refit", count),
        }
        if count > 200:
            del tasks["gpax viGP"]  # many seconds a fit
        found = bench.measure(tasks, 3 if bench.quick else 7, warm_up=1)
        for ours in OURS:
            chosen = {k: v for k, v in found.items() if k == ours or k not in OURS}
            note = f"compilations {compilations(found[ours])}"
            name = f"fit after one more point, N = {count}, {ours}"
            bench.time_rows(name, chosen, ours, {"botorch": 0.2}, note)


def append(bench: Bench) -> None:
    for count in (70,) if bench.quick else (70, 150, 100):  # the last ones double the buffers
        tasks = {
            "micjax": ("micjax", "append", count),
            "botorch, condition_on_observations": ("botorch", "append", count),
        }
        steps = 10 if bench.quick else 50
        found = bench.measure(tasks, steps, warm_up=1)
        name = f"one more point and prediction of 2,500 points, N = {count + 1} to {count + steps}"
        bench.time_rows(name, found, "micjax", {}, "bar: 5 ms")
        number = compilations(found["micjax"])
        bench.row(f"compilations: {name}", number, "", note="after the first; bar: 0")


def loop(bench: Bench, kind: str, bars: dict[str, float]) -> None:
    """The loop on the map. What a peer does at a step stands in its program."""
    steps = 3 if bench.quick else problems.STEPS
    tasks = {
        "micjax": ("micjax", "loop", kind, 0),
        "botorch": ("botorch", "loop", kind, 0),
        "botorch, warm starts": ("botorch", "loop", kind, 0, "warm"),
        "gpax": ("gpax", "loop", kind, 0),
    }
    if kind == "dkl":
        del tasks["botorch, warm starts"]
    found = bench.measure(tasks, steps)
    name = f"{kind} loop on the BEPS map"
    bench.time_rows(f"{name}, one of {steps} steps", found, "micjax", bars)
    total = {k: sum(s["cpu_s"] for s in v) for k, v in found.items()}
    bench.rows(f"{name}, {steps} steps, compilations included", total.pop("micjax"), "s", total)
    number = compilations(found["micjax"])
    later = compilations(found["micjax"][steps // 2 :])
    bench.row(f"{name}, compilations", number, "", note=f"{later} of them in the second half")
    candidates = problems.CANDIDATES[kind]()
    chosen = {k: candidates.start(0) + [s["chosen"] for s in v] for k, v in found.items()}
    regret = {k: float(candidates.regret(v)[-1]) for k, v in chosen.items()}
    bench.rows(f"{name}, regret at the end, 1 seed", regret.pop("micjax"), "of the range", regret)


def loop_gp(bench: Bench) -> None:
    loop(bench, "gp", {"botorch": 0.5, "gpax": 1 / 50})


def loop_dkl(bench: Bench) -> None:
    loop(bench, "dkl", {"botorch": 0.5, "gpax": 1 / 30})


def bayes(bench: Bench) -> None:
    """Streaming particles up to N points beside NUTS at N, with the same priors."""
    count, often = (20, 5) if bench.quick else (50, 8)
    tasks = {"micjax": ("micjax", "bayes", count), "gpax": ("gpax", "nuts", count)}
    found = bench.measure(tasks, count - problems.FIRST, every={"gpax": often})
    note = "theirs: NUTS 500 + 500; ours with, theirs without a prediction (of 2,500 points)"
    for kind, mean in {"median": False, "mean, compilations included": True}.items():
        name = f"full Bayes, a step up to N = {count}, {kind}"
        bench.time_rows(name, found, "micjax", {"gpax": 0.1}, note, mean)
    if "gpax" in found:
        last, runs = found["micjax"][-1], found["gpax"]
        means, sds = (np.array([run[k] for run in runs]) for k in ("mean", "sd"))
        mean, sd = means.mean(axis=0), sds.mean(axis=0)
        own = root_mean_square(means.std(axis=0, ddof=1) / sd)
        name = f"difference of the posterior means, N = {count}"
        note = f"bar: 0.1; rms over 400 points from the mean of {len(runs)} runs of gpax"
        note = f"{note}, which scatter by {own:.2g} about it"
        off = root_mean_square((np.array(last["mean"]) - mean) / sd)
        bench.row(name, off, "posterior sd", note=note)
        ratio = float(np.median(np.array(last["sd"]) / sd))
        name = f"posterior sd over that of gpax, N = {count}"
        bench.row(name, ratio, "", note="median over 400 points")


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def regret(bench: Bench) -> None:
    seeds = range(1 if bench.quick else 10)
    for name in ("branin",) if bench.quick else problems.FUNCTIONS:
        found: dict[str, Samples] = {}
        for seed in seeds:
            tasks = {side: (side, "regret", name, seed) for side in ("micjax", "botorch")}
            for side, samples in bench.measure(tasks, 1).items():
                found.setdefault(side, []).extend(samples)
        final = {k: [s["regret"][-1] for s in v] for k, v in found.items()}
        total = problems.FUNCTIONS[name].total
        notes = {k: f"{k}: {[short(r, 3) for r in v]}" for k, v in final.items()}
        notes[""] = str([short(r, 3) for r in final["micjax"]])
        middle = {k: statistics.median(v) for k, v in final.items()}
        title = f"{name}, simple regret after {total} points, median of {len(seeds)} seeds"
        bench.rows(title, middle.pop("micjax"), "", middle, notes, {"botorch": 1.5})
        for key, scale, unit, what in (
            ("step_cpu_s", 1e3, "ms", "median step"),
            ("cpu_s", 1.0, "s", "all steps, compilations included"),
        ):
            times = {k: scale * statistics.median([s[key] for s in v]) for k, v in found.items()}
            bench.rows(f"{name}, {total} points, {what}", times.pop("micjax"), unit, times)


def calibration(bench: Bench) -> None:
    """How much of what is measured falls into the 90 % intervals, after evenly spread points and
    after those that a learner has acquired."""
    seeds = 2 if bench.quick else 10
    for name in ("branin",) if bench.quick else problems.SURVEYS:
        total = problems.SURVEYS[name].total
        for design in problems.DESIGNS:
            tasks = {"micjax": ("micjax", "calibration", name, design)}
            if design == "spread":
                tasks["botorch"] = ("botorch", "calibration", name, design)
            found = bench.measure(tasks, seeds)
            shares = {k: [s["covered"] for s in v] for k, v in found.items()}
            notes = {k: f"{k}: {[short(c, 3) for c in v]}" for k, v in shares.items()}
            notes[""] = f"bar: 0.85 to 0.95; {[short(c, 3) for c in shares['micjax']]}"
            middle = {k: statistics.fmean(v) for k, v in shares.items()}
            title = (
                f"90 % intervals cover, {name}, {total} points ({design}), mean of {seeds} seeds"
            )
            bench.rows(title, middle.pop("micjax"), "", middle, notes)


def compilations(samples: Samples) -> int:
    return sum(sample["compilations"] for sample in samples)


PARTS = {
    "fit": fit,
    "refit": refit,
    "append": append,
    "loop-gp": loop_gp,
    "loop-dkl": loop_dkl,
    "bayes": bayes,
    "regret": regret,
    "calibration": calibration,
}
LONG = ("loop-dkl", "bayes", "calibration")  # left out of a quick run unless named


def interpreters(given: Sequence[str] | None) -> dict[str, str]:
    """The interpreter of each side that has one."""
    variables = [os.environ.get(f"{peer.upper()}_PYTHON") for peer in PEERS]
    found = {"micjax": sys.executable}
    for peer, python in zip(PEERS, given or variables, strict=True):
        if python and pathlib.Path(python).is_file():
            found[peer] = python
        else:
            print(f"{peer} skipped: no interpreter {python or 'given'}", file=sys.stderr)
    return found


def tables(lines: list[dict]) -> str:
    """Markdown of rows: coverage by design, then everything else."""
    covered: dict[str, dict[str, str]] = {}
    rows = [
        "| what | micjax | unit | peer | peer has | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        shown = [
            "-" if line[k] is None else f"{line[k]:.3g}" for k in ("value", "peer_value", "ratio")
        ]
        value, theirs, ratio = shown
        if not line["name"].startswith("90 % intervals cover, "):
            peer = line["peer"] or "-"
            rows.append(
                f"| {line['name']} | {value} | {line['unit']} | {peer} | {theirs} | {ratio} |"
            )
            continue
        where, points, _ = line["name"].removeprefix("90 % intervals cover, ").split(", ")
        count, _, design = points.removesuffix(")").partition(" points (")
        of = covered.setdefault(f"| {where} | {count} |", {})
        of |= {design: value} | ({line["peer"]: theirs} if line["peer"] else {})
    names = [*problems.DESIGNS, "botorch"]
    first = [
        f"| on | points | {' | '.join(names[:-1])} | botorch, spread |",
        "|---|---|" + "---|" * len(names),
        *(f"{k} {' | '.join(v.get(n, '-') for n in names)} |" for k, v in covered.items()),
    ]
    return "\n".join([*first, "", *rows])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, repeats and steps")
    parser.add_argument(
        "--peers", nargs=2, metavar=("BOTORCH_PYTHON", "GPAX_PYTHON"), help="their interpreters"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--table", type=pathlib.Path, metavar="FILE", help="of lines printed before"
    )
    given = parser.parse_args(arguments)
    if given.table is not None:
        return print(tables([json.loads(line) for line in given.table.read_text().splitlines()]))
    one_core()
    bench = Bench(interpreters(given.peers), given.quick)
    usual = [part for part in PARTS if not (given.quick and part in LONG)]
    for part in given.only or usual:
        PARTS[part](bench)


if __name__ == "__main__":
    main()
