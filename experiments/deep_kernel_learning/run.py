"""Find the pixels with the largest hysteresis loops, from an image of the response at 0 V.

    python experiments/deep_kernel_learning/run.py [--seeds 10] [--first 0] [--methods deep ...]
    python experiments/deep_kernel_learning/run.py --without-shared-point

Replays BEPS_PTO_50x50.h5 (DTMicroscope): 1,764 pixels around which a 9 x 9 patch lies in the
50 x 50 grid; 10 loops at random, 60 chosen one after the other. Prints a table, writes
results.json and figure.png beside this file.
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
from flax import nnx
from scipy.stats import norm, spearmanr

from micjax.active import acquisition, deep_kernel, gp
from micjax.active.evidence import fit_evidence

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
        self.patches = deep_kernel.patches(self.logarithm, SIDE)[1]
        low, high = self.pixels.min(axis=0), self.pixels.max(axis=0)
        self.position = (self.pixels - low) / (high - low)
        # shoelace: sum of response_k (bias_k-1 - bias_k+1) / 2
        weight = 0.5 * (np.roll(bias_V, 1) - np.roll(bias_V, -1))
        if without_shared_point:
            weight[0] = 0.0
        areas = np.abs(loops @ weight)
        self.area = areas[tuple(self.pixels.T)]
        self.middle = self.image[tuple(self.pixels.T)]
        self.best = set(np.argsort(-self.area)[:WANTED].tolist())


def level_of_best(mean, sd, known, count: int) -> float:
    """The level above which `count` outcomes are expected: those known, and the predicted ones."""
    low, high = min(known.min(), mean.min() - 8 * sd.max()), known.max() + 8 * sd.max()
    for _ in range(50):
        level = 0.5 * (low + high)
        expected = np.sum(known > level) + np.sum(norm.sf((level - mean) / sd))
        low, high = (level, high) if expected > count else (low, level)
    return level


def search(mean, sd, noise_sd, y, left):
    """log P(a measurement is among the `WANTED` best): what a greedy search maximises."""
    wide = np.hypot(sd, noise_sd)
    level = level_of_best(mean[left], wide[left], y, WANTED)
    return norm.logsf((level - mean) / wide)


def improvement(mean, sd, noise_sd, y, left):
    """log expected improvement over the largest area so far."""
    return np.asarray(acquisition.log_expected_improvement(mean, sd, y.max()))


# --- ways to choose: (sample, seed) -> function of (chosen, y) that scores all pixels ------------


def at_random(sample, seed):
    rng = np.random.default_rng(1000 + seed)
    return lambda chosen, y: (rng.uniform(size=len(sample.area)), None)


def brightest(sample, seed):
    return lambda chosen, y: (sample.middle, None)


def plain(points, acquire):
    """The plain Gaussian process, Matérn 5/2 with one lengthscale an axis."""

    def start(sample, seed):
        x = points(sample)
        problem, last = gp.process(x.min(axis=0), x.max(axis=0)), None

        def score(chosen, y):
            nonlocal last
            data = gp.buffered(x[chosen], y, capacity=CAPACITY)
            last = fit_evidence(problem, *data, last=last)
            mean, variance = gp.predict(gp.condition(last.problem, *data), x)
            left = np.setdiff1d(np.arange(len(x)), chosen)
            sigma = float(last.problem.noise.sigma)
            return acquire(mean, np.sqrt(variance), sigma, y, left), mean

        return score

    return start


def deep(network, acquire, members: int = 3, places: int = 2):
    """A deep kernel, trained on from where it was with each datum."""

    def start(sample, seed):
        key = jax.random.key(seed)
        x = np.hstack([sample.position, sample.patches])
        box = np.zeros(x.shape[1]), np.ones(x.shape[1])
        problem = deep_kernel.deep_process(*box, network(nnx.Rngs(seed)), places=places)
        ensemble, steps = None, deep_kernel.FIRST_STEPS

        def score(chosen, y):
            nonlocal ensemble, steps
            data = gp.buffered(x[chosen], y, capacity=CAPACITY)
            if ensemble is None:
                ensemble = deep_kernel.draw_ensemble(problem, key, members)
            ensemble = deep_kernel.train(ensemble, *data, steps)
            steps = deep_kernel.STEPS
            found = deep_kernel.predict(ensemble, *data, x)
            left = np.setdiff1d(np.arange(len(x)), chosen)
            noise_sd = np.sqrt(found.noise)
            return acquire(found.mean, np.sqrt(found.variance), noise_sd, y, left), found.mean

        return score

    return start


def components(sample):
    """The first 5 principal components of the patches of the response (its logarithm is worse)."""
    centred = sample.plain - sample.plain.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    return (left * sizes)[:, :5]


def surroundings(**settings):
    return lambda rngs: deep_kernel.Surroundings(SIDE, rngs=rngs, **settings)


def dense(rngs):
    return deep_kernel.Dense(SIDE**2, 2, rngs=rngs)


METHODS = {
    "random": at_random,
    "brightest": brightest,
    "gp-position": plain(lambda s: s.position, improvement),
    "gp-patch": plain(components, improvement),
    "free-network": deep(dense, search),
    "deep": deep(surroundings(), search),
    "deep-one": deep(surroundings(), search, members=1),
    "deep-improvement": deep(surroundings(), improvement),
    "pixel": deep(surroundings(share=0.0), search, members=1),
}
LABELS = {
    "random": "random",
    "brightest": "brightest pixel of the 0 V image first, no learning",
    "gp-position": "GP on position, expected improvement",
    "gp-patch": "GP on 5 principal components of the patch, expected improvement",
    "free-network": "deep kernel, free network of the patch, search",
    "deep": "**deep kernel, search**",
    "deep-one": "one member instead of 3",
    "deep-improvement": "expected improvement instead of search",
    "pixel": "without the network: middle pixel and position, search",
}


def run(sample: Sample, method: str, seed: int) -> dict:
    """One replay of 10 + 60 measurements."""
    chosen = np.random.default_rng(seed).choice(len(sample.area), RANDOM, replace=False).tolist()
    score, seconds, busy, mean = METHODS[method](sample, seed), [], [], None
    for _ in range(CHOSEN):
        logs = np.log10(sample.area[chosen])
        centre, spread = logs.mean(), logs.std()
        wall, cpu = time.perf_counter(), time.process_time()
        values, mean = score(chosen, (logs - centre) / spread)
        seconds.append(time.perf_counter() - wall)
        busy.append(time.process_time() - cpu)
        chosen.append(
            int(acquisition.best_allowed(values, ~np.isin(np.arange(len(values)), chosen))[0])
        )
    area, truth = sample.area, np.log10(sample.area)
    left = np.setdiff1d(np.arange(len(area)), chosen)
    r2 = None
    if mean is not None:
        wrong = truth[left] - (centre + spread * mean[left])
        r2 = float(1.0 - np.mean(wrong**2) / np.var(truth[left]))
    return {
        "method": method,
        "seed": seed,
        "found": [int(f) for f in np.cumsum([i in sample.best for i in chosen])],
        "regret": float(1.0 - area[chosen].max() / area.max()),
        "r2": r2,
        "median_step_s": float(np.median(seconds)),
        "median_step_cpu_s": float(np.median(busy)),
        "chosen": chosen,
    }


def table(runs: list[dict]) -> str:
    head = "| method | found of the best 50 | least | regret | R2 of the rest | step, CPU s |"
    lines = [head, "|---|---|---|---|---|---|"]
    for method in METHODS:
        mine = [r for r in runs if r["method"] == method]
        if not mine:
            continue
        found = np.array([r["found"][-1] for r in mine])
        regret = np.mean([r["regret"] for r in mine])
        r2 = "" if mine[0]["r2"] is None else f"{np.mean([r['r2'] for r in mine]):.2f}"
        step = np.median([r["median_step_cpu_s"] for r in mine])
        cost = f"{step:.3f}" if mine[0]["r2"] is not None else ""
        lines.append(
            f"| {LABELS[method]} | {found.mean():.1f} ± {found.std(ddof=1):.1f} | {found.min()} "
            f"| {regret:.2f} | {r2} | {cost} |"
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
            name = LABELS[method].replace("*", "").split(",")[0]
            axes[2].plot(np.arange(1, mine.shape[1] + 1), mine.mean(axis=0), lw=width, label=name)
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
    parser.add_argument("--out", type=pathlib.Path, help="folder for results.json and figure.png")
    given = parser.parse_args()
    sample = Sample(given.data, given.without_shared_point)
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
