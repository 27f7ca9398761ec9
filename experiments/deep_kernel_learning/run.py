"""Find the pixels with the largest hysteresis loops, from an image of the response at 0 V.

    python experiments/deep_kernel_learning/run.py [--seeds 10] [--methods deep ...] [--out FOLDER]
    python experiments/deep_kernel_learning/run.py --without-shared-point
    python experiments/deep_kernel_learning/run.py --figure FOLDER/results.json

Replays BEPS_PTO_50x50.h5 (DTMicroscope): 1,764 pixels around which a 9 x 9 patch lies in the
50 x 50 grid; 10 loops at random, 60 chosen one after the other. Prints a table; with --out writes
results.json and figure.png.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import h5py
import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from micjax.active.acquire import values as acquisition
from micjax.active.gp import deep as deep_kernel
from micjax.active.gp import process as gp
from micjax.active.gp.evidence import fit_evidence
from micjax.active.learner.learner import Learner
from micjax.active.learner.looking import looking_model
from micjax.active.learner.space import SearchAxis, Space

HERE = pathlib.Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data" / "afm" / "BEPS_PTO_50x50.h5"
SIDE, RANDOM, CHOSEN, WANTED = 9, 10, 60, 50
CAPACITY = RANDOM + CHOSEN  # of the buffers: the budget


class Sample:
    """What is known beforehand (patches, positions), and what measuring a pixel tells (area)."""

    def __init__(self, file: pathlib.Path, without_shared_point: bool = False):
        with h5py.File(file) as f:
            loops = f["Channel_000/generic/generic"][:]
            bias_V = f["Channel_000/generic/Voltage"][:]
        # the waveform is 0 V, up to 8.5 V, down to -8.5 V, back: its first point is taken before
        # any bias, as by a plain piezoresponse scan; it is also one of the 64 points of the loop
        self.image = np.abs(loops[..., 0])
        self.pixels, self.plain = deep_kernel.patches(self.image, SIDE)
        logarithm = np.log10(self.image)
        # standardised over the whole image, not patch by patch
        self.logarithm = (logarithm - logarithm.mean()) / logarithm.std()
        # shoelace: sum of response_k (bias_k-1 - bias_k+1) / 2
        weight = 0.5 * (np.roll(bias_V, 1) - np.roll(bias_V, -1))
        if without_shared_point:
            weight[0] = 0.0
        areas = np.abs(loops @ weight)
        self.area = areas[tuple(self.pixels.T)]
        self.middle = self.image[tuple(self.pixels.T)]
        self.best = set(np.argsort(-self.area)[:WANTED].tolist())
        ends = np.array(self.image.shape) - 1
        axes = [SearchAxis(name, 0, end, "px") for name, end in zip(("y", "x"), ends, strict=True)]
        self.space = Space(axes, self.pixels.astype(float))
        self._numbers = {tuple(p): i for i, p in enumerate(self.space.candidates.tolist())}

    def measured(self, i: int) -> dict[str, float]:
        return self.space.settings(self.space.candidates[i]) | {"area": self.area[i]}

    def number(self, point: dict[str, float]) -> int:
        return self._numbers[self.space.numbers(point)]


# --- ways to choose: (sample, seed) -> a learner, or a score of all pixels -----------------------


def at_random(sample, seed):
    rng = np.random.default_rng(1000 + seed)
    return lambda chosen, y: rng.uniform(size=len(sample.area))


def brightest(sample, seed):
    return lambda chosen, y: sample.middle


def on_components(sample, seed):
    """The plain process over the first 5 principal components of the patches of the response (its
    logarithm is worse), expected improvement of the logarithm of the area."""
    centred = sample.plain - sample.plain.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    x = (left * sizes)[:, :5]
    problem, last = gp.process(x.min(axis=0), x.max(axis=0)), None

    def score(chosen, y):
        nonlocal last
        z = np.log10(y)
        z = (z - z.mean()) / z.std()
        data = gp.buffered(x[chosen], z, capacity=CAPACITY)
        last = fit_evidence(problem, *data, last=last)
        mean, variance = gp.predict(gp.condition(last.problem, *data), x)
        value = acquisition.log_expected_improvement(mean, np.sqrt(variance), z.max())
        return np.asarray(value)

    return score


def learner(goal: str, network=None, looks: bool = True, members: int = 1):
    """A `Learner` over the pixels, which looks at the image or does not."""

    def start(sample, seed):
        space = sample.space
        model = None
        if looks:
            model = looking_model(
                space, sample.logarithm, network=network, side=SIDE, members=members, seed=seed
            )
        wanted = WANTED if goal == "find" else None
        return Learner(
            space,
            outcome="area",
            goal=goal,
            wanted=wanted,
            model=model,
            initial=RANDOM,
            seed=seed,
        )

    return start


def dense(rngs):
    return deep_kernel.Dense(SIDE**2, 2, rngs=rngs)


def middle_pixel(rngs):
    return deep_kernel.Surroundings(SIDE, share=0.0, rngs=rngs)


METHODS = {
    "random": at_random,
    "brightest": brightest,
    "gp-position": learner("maximise", looks=False),
    "gp-patch": on_components,
    "free-network": learner("find", dense),
    "deep": learner("find"),
    "ensemble": learner("find", members=3),
    "deep-improvement": learner("maximise"),
    "pixel": learner("find", middle_pixel),
}
LABELS = {
    "random": "random",
    "brightest": "brightest pixel of the 0 V image first, no learning",
    "gp-position": "learner on position, goal maximise",
    "gp-patch": "GP on 5 principal components of the patch, expected improvement",
    "free-network": "learner that looks, free network of the patch, goal find",
    "deep": "**learner that looks, goal find**",
    "ensemble": "the same, three networks",
    "deep-improvement": "the same, goal maximise",
    "pixel": "the same, middle pixel and position in place of the network",
}


def run(sample: Sample, method: str, seed: int) -> dict:
    """One replay of 10 + 60 measurements."""
    chosen = np.random.default_rng(seed).choice(len(sample.area), RANDOM, replace=False).tolist()
    chooser, seconds, busy = METHODS[method](sample, seed), [], []
    if isinstance(chooser, Learner):
        chooser.ingest([sample.measured(i) for i in chosen])
    while len(chosen) < CAPACITY:
        wall, cpu = time.perf_counter(), time.process_time()
        if isinstance(chooser, Learner):
            (point,) = chooser.suggest(1)
            chosen.append(sample.number(point))
            chooser.ingest([{**point, "area": sample.area[chosen[-1]]}])
        else:
            values = chooser(chosen, sample.area[chosen])
            free = ~np.isin(np.arange(len(values)), chosen)
            chosen.append(int(acquisition.best_allowed(values, free)[0]))
        seconds.append(time.perf_counter() - wall)
        busy.append(time.process_time() - cpu)
    area, truth = sample.area, np.log10(sample.area)
    left = np.setdiff1d(np.arange(len(area)), chosen)
    r2 = coverage = None
    if isinstance(chooser, Learner):
        found = chooser.predict(sample.space.candidates[left])
        wrong = truth[left] - np.log10(np.maximum(found.median, area.min()))
        r2 = float(1.0 - np.mean(wrong**2) / np.var(truth[left]))
        coverage = float(np.mean((found.lower <= area[left]) & (area[left] <= found.upper)))
    return {
        "method": method,
        "seed": seed,
        "found": [int(f) for f in np.cumsum([i in sample.best for i in chosen])],
        "regret": float(1.0 - area[chosen].max() / area.max()),
        "r2": r2,
        "coverage": coverage,
        "median_step_s": float(np.median(seconds)),
        "median_step_cpu_s": float(np.median(busy)),
        "chosen": chosen,
    }


def table(runs: list[dict]) -> str:
    head = "| method | of the best 50 | least | regret | R2 of the rest | 90 % covers | CPU ms |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for method in METHODS:
        mine = [r for r in runs if r["method"] == method]
        if not mine:
            continue
        found = np.array([r["found"][-1] for r in mine])
        regret = np.mean([r["regret"] for r in mine])
        r2, covers = (
            "" if mine[0][k] is None else f"{np.mean([r[k] for r in mine]):.2f}"
            for k in ("r2", "coverage")
        )
        step = 1e3 * np.median([r["median_step_cpu_s"] for r in mine])
        lines.append(
            f"| {LABELS[method]} | {found.mean():.1f} ± {found.std(ddof=1):.1f} | {found.min()} "
            f"| {regret:.2f} | {r2} | {covers} | {step:.3g} |"
        )
    return "\n".join(lines)


def figure(sample: Sample, runs: list[dict], file: pathlib.Path) -> None:
    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    shape = tuple(sample.pixels.max(axis=0) - sample.pixels.min(axis=0) + 1)
    middle = np.log10(sample.middle).reshape(shape)
    axes[0].imshow(middle, cmap="gray")
    axes[0].set_title("known before: log10 response at 0 V")
    area = axes[1].imshow(np.log10(sample.area).reshape(shape), cmap="viridis")
    fig.colorbar(area, ax=axes[1], label="log10 loop area (a.u. V)")
    shown = next((r for r in runs if r["method"] == "deep"), None)
    if shown is not None:
        for part, marker in ((slice(0, RANDOM), "s"), (slice(RANDOM, None), "o")):
            y, x = np.array(np.unravel_index(shown["chosen"][part], shape))
            hit = np.isin(shown["chosen"][part], list(sample.best))
            axes[1].scatter(x, y, s=30, marker=marker, facecolors="none", edgecolors="w")
            axes[1].scatter(x[hit], y[hit], s=12, marker=marker, c="r")
        axes[1].set_title(f"measured (seed {shown['seed']}); red: among the best 50")
    for method in METHODS:
        mine = np.array([r["found"] for r in runs if r["method"] == method])
        if len(mine):
            width = 2.5 if method == "deep" else 1.2
            axes[2].plot(np.arange(1, mine.shape[1] + 1), mine.mean(axis=0), lw=width, label=method)
    axes[2].axhline(18, color="k", ls=":", lw=0.8)
    axes[2].set(xlabel="loops measured", ylabel="found of the best 50")
    axes[2].legend(fontsize=7)
    for axis in axes[:2]:
        axis.set_xticks([]), axis.set_yticks([])
    fig.savefig(file, dpi=110)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--data", type=pathlib.Path, default=DATA)
    parser.add_argument(
        "--without-shared-point",
        action="store_true",
        help="leave the 0 V point out of the area, so that image and target share no datum",
    )
    parser.add_argument("--figure", type=pathlib.Path, help="a results.json to draw again")
    parser.add_argument("--out", type=pathlib.Path, help="folder for results.json and figure.png")
    given = parser.parse_args()
    sample = Sample(given.data, given.without_shared_point)
    if given.figure is not None:
        runs = json.loads(given.figure.read_text())["runs"]
        return figure(sample, runs, given.figure.with_name("figure.png"))
    rank = spearmanr(sample.middle, sample.area).statistic
    logs = np.corrcoef(np.log10(sample.middle), np.log10(sample.area))[0, 1]
    print(f"middle pixel and area: rank correlation {rank:.2f}, of logarithms {logs:.2f}")
    runs = []
    for method in given.methods:
        for seed in range(given.first, given.first + given.seeds):
            runs.append(run(sample, method, seed))
        print(method, [r["found"][-1] for r in runs if r["method"] == method], flush=True)
    print(table(runs))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        about = {"seeds": given.seeds, "first": given.first, "jax": jax.__version__}
        about["without_shared_point"] = given.without_shared_point
        (given.out / "results.json").write_text(json.dumps(about | {"runs": runs}) + "\n")
        figure(sample, runs, given.out / "figure.png")


if __name__ == "__main__":
    main()
