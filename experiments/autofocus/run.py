"""How many images does it take to focus a microscope and take its astigmatism away?

    python experiments/autofocus/run.py [--seeds 0 40] [--cases known left-out] [--methods ...]
    python experiments/autofocus/run.py --table
    python experiments/autofocus/run.py --figure FOLDER
    python experiments/autofocus/run.py --replay FILE.h5

A simulated STEM (200 kV, 10 mrad, 128 x 128 pixels of 0.625 Å, 1,000 electrons a pixel) in front of
gold particles on carbon that it has never seen. At the start |C10| is up to 200 nm and |A1| up to
60 nm. In the case "known" there are no other aberrations; in "left-out" the instrument has a
spherical aberration of up to 20 µm and a source of 0.5 Å rms of which the model knows nothing.

    model      the images as a series through one unknown object (micjax.problems.autofocus)
    black-box  a learner that maximises the contrast of the image, log-EI over the three settings
    sweep      classical: the sharpest of a series, axis by axis, twice, with a finer step

Prints a line of JSON for each run and adds it to results.jsonl.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np

from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space
from micjax.problems.autofocus import Record, Rules, autofocus, microscope, problem

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results.jsonl"
CASES = {"known": Rules(images=6), "left-out": Rules(images=8)}  # the bars
C10_A, A1_A = 2000.0, 600.0  # the largest at the start
GOAL = Rules()  # 5 nm of defocus, 3 nm of astigmatism
MOST = 60  # images of a search without a model
AXES = ("C10", "C12a", "C12b")


def instrument(case: str, seed: int):
    """The microscope as it is found."""
    rng = np.random.default_rng([7, seed])
    angle, size = rng.uniform(0.0, 2.0 * np.pi), A1_A * np.sqrt(rng.uniform())
    found_A = {
        "C10": rng.uniform(-C10_A, C10_A),
        "C12a": size * np.cos(angle),
        "C12b": size * np.sin(angle),
    }
    if case == "known":
        return microscope(seed, found_A)
    return microscope(seed, found_A | {"C30": rng.uniform(-2e5, 2e5)}, source_A=0.5)


class Shots:
    """Takes images with the microscope, each with a noise of its own, and counts them."""

    def __init__(self, case: str, seed: int):
        self.microscope, self.seed = instrument(case, seed), seed
        self.settings_A: list[np.ndarray] = []

    def __call__(self, setting_A) -> np.ndarray:
        key = jax.random.fold_in(jax.random.key(self.seed), len(self.settings_A))
        self.settings_A.append(np.asarray(setting_A, float))
        return self.microscope.image(key, self.settings_A[-1])

    def contrast(self, setting_A) -> float:
        """Normalised variance of the image, less that of the shot noise."""
        image = self(setting_A)
        return float((image.var() - image.mean()) / image.mean() ** 2)


def by_model(shots: Shots, case: str, folder: pathlib.Path | None):
    """The setting after each image, and how often the planned steps were within their bounds."""
    rules = CASES[case]
    record = autofocus(shots, problem(), shots.seed, rules)
    if folder is not None:
        record.save(folder / f"{case}-{shots.seed}.h5")
    moves = np.abs(np.diff([*record.settings_A, record.decisions[-1].setting_A], axis=0))
    largest = [rules.C10_step_A, rules.C12_step_A, rules.C12_step_A]
    assert np.all(moves <= np.array(largest) + 1e-6)
    return [-np.array(d.estimate_A) for d in record.decisions], record


def by_learner(shots: Shots, case: str, folder):
    limits = (C10_A, A1_A, A1_A)
    space = Space([SearchAxis(n, -lim, lim, "Å") for n, lim in zip(AXES, limits, strict=True)])
    learner, best = Learner(space, outcome="contrast", seed=shots.seed), []
    while len(shots.settings_A) < MOST:
        (point,) = learner.suggest(1)
        learner.ingest([{**point, "contrast": shots.contrast([point[a] for a in AXES])}])
        _, where, _ = learner.get_best_points()[0]
        best.append(np.array([where[a] for a in AXES]))
    return best, None


def by_sweeps(shots: Shots, case: str, folder):
    at, best = np.zeros(3), []
    spans = [(C10_A, 11), (A1_A, 7), (A1_A, 7), (C10_A / 5, 9), (A1_A / 3, 7), (A1_A / 3, 7)]
    for i, (span, count) in enumerate(spans):
        tried = np.repeat(at[None], count, axis=0)
        tried[:, i % 3] += np.linspace(-span, span, count)
        values = []
        for setting in tried:
            values.append(shots.contrast(setting))
            best.append(at)
        at = tried[np.argmax(values)]
    best[-1] = at
    return best, None


METHODS = {"model": by_model, "black-box": by_learner, "sweep": by_sweeps}


def run(case: str, method: str, seed: int, folder: pathlib.Path | None) -> dict:
    shots = Shots(case, seed)
    begun, busy = time.perf_counter(), time.process_time()
    corrected_A, record = METHODS[method](shots, case, folder)
    seconds = (time.perf_counter() - begun, time.process_time() - busy)
    left_A = np.array([shots.microscope.residual_A(setting) for setting in corrected_A])
    met = [GOAL.met(left) for left in left_A]
    images = len(shots.settings_A)
    result = {
        "case": case,
        "method": method,
        "seed": seed,
        "images": images,
        # after so many images the goal is met and stays met; one more than all if never
        "needed": images + 1 - (np.argmin(met[::-1]) if not all(met) else images),
        "met": bool(met[-1]),
        "start_A": shots.microscope.residual_A(np.zeros(3)),
        "left_A": left_A[:, 0],
        "left_A1_A": np.hypot(left_A[:, 1], left_A[:, 2]),
        "wall_s": seconds[0],
        "cpu_s": seconds[1],
    }
    if record is not None:
        last = record.decisions[-1]
        sd = np.sqrt(np.diag(last.covariance_A2))
        result |= {"sd_A": sd, "z": left_A[-1] / sd, "reason": last.reason}
    return {k: _plain(v) for k, v in result.items()}


def _plain(value):
    if isinstance(value, np.ndarray):
        return [float(f"{v:.4g}") for v in value]
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return int(value) if isinstance(value, np.integer) else value


def replay(path: pathlib.Path) -> None:
    """Make the decisions of a record again from its images."""
    record = Record.load(path)
    again = record.replayed(problem())
    same = [a == b for a, b in zip(again, record.decisions, strict=True)]
    print(f"{path}: {sum(same)} of {len(same)} decisions are the same")


def results() -> dict[tuple[str, str], list[dict]]:
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    last = {(r["case"], r["method"], r["seed"]): r for r in lines}
    found: dict[tuple[str, str], list[dict]] = {}
    for (case, method, _), r in sorted(last.items()):
        found.setdefault((case, method), []).append(r)
    return found


def table() -> str:
    rows = [
        "| case | method | images needed: median (90 %, most) | within 6 | within 8 | in the end | "
        "sure | sure and wrong | error over sd: C10, A1 | left C10, A1 (nm), median | images taken "
        "| s an image |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (case, method), runs in results().items():
        needed = np.array([r["needed"] if r["met"] else np.inf for r in runs])
        ninety, most = np.quantile(needed, 0.9, method="higher"), needed.max()
        shares = [f"{np.sum(needed <= n)} of {len(runs)}" for n in (6, 8)]
        met = sum(r["met"] for r in runs)
        left = np.median([abs(r["left_A"][-1]) for r in runs]) / 10.0
        astigmatism = np.median([r["left_A1_A"][-1] for r in runs]) / 10.0
        taken = np.median([r["images"] for r in runs])
        seconds = np.median([r["wall_s"] / r["images"] for r in runs])
        middle = np.quantile(needed, 0.5, method="higher")
        rows.append(
            f"| {case} | {method} | {_short(middle)} ({_short(ninety)}, {_short(most)}) | "
            f"{shares[0]} | {shares[1]} | {met} | {_of_the_posterior(runs)} | "
            f"{left:.2f}, {astigmatism:.2f} | {taken:g} | {seconds:.2g} |"
        )
    return "\n".join(rows)


def _of_the_posterior(runs: list[dict]) -> str:
    """How often it said that it was sure, how often wrongly, and the rms of error over sd of those
    that met the goal."""
    if "z" not in runs[0]:
        return "- | - | -"
    sure = [r for r in runs if r["reason"].startswith("sure")]
    z = np.sqrt(np.mean([np.square(r["z"]) for r in runs if r["met"]], axis=0))
    wrong = sum(not r["met"] for r in sure)
    return f"{len(sure)} | {wrong} | {z[0]:.1f}, {z[1]:.1f} and {z[2]:.1f}"


def _short(n: float) -> str:
    return "never" if np.isinf(n) else f"{n:g}"


def figure(folder: pathlib.Path) -> None:
    """What is left after each image, every seed a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = results()
    canvas, axes = plt.subplots(2, len(CASES), figsize=(11, 6.5), layout="constrained", sharex=True)
    colours = {"model": "tab:blue", "black-box": "tab:orange", "sweep": "tab:gray"}
    for column, case in zip(axes.T, CASES, strict=True):
        for key, limit, ax in zip(
            ("left_A", "left_A1_A"), (GOAL.C10_A, GOAL.C12_A), column, strict=True
        ):
            for method, colour in colours.items():
                for r in found.get((case, method), []):
                    left = np.abs(r[key]) / 10.0
                    ax.loglog(np.arange(1, len(left) + 1), left, color=colour, alpha=0.3, lw=0.8)
                ax.plot([], [], color=colour, label=method)
            ax.axhline(limit / 10.0, color="k", ls=":", lw=1)
            ax.set(ylabel="left |C10| (nm)" if key == "left_A" else "left |A1| (nm)")
            ax.set_ylim(0.02, 500)
        column[0].set_title(case)
        column[0].legend(fontsize=8)
        column[1].set_xlabel("images")
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / "autofocus.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 40], metavar=("FIRST", "END"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--records", type=pathlib.Path, help="folder for the records of the model")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--figure", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--replay", type=pathlib.Path, metavar="FILE")
    given = parser.parse_args()
    if given.replay is not None:
        return replay(given.replay)
    if given.table:
        return print(table())
    if given.figure is not None:
        return figure(given.figure)
    if given.records is not None:
        given.records.mkdir(parents=True, exist_ok=True)
    for case in given.cases:
        for method in given.methods:
            for seed in range(*given.seeds):
                result = run(case, method, seed, given.records)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
