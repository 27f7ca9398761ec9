"""Planned measurements against uniform ones: how many it takes to know something well enough.

    python experiments/planning/run.py oscillator|features|thon [--seeds 0 20] [--strategies D A]
    python experiments/planning/run.py table
    python experiments/planning/run.py limits
    python experiments/planning/run.py figure --out FOLDER

Every seed draws a truth from the priors and measures it, one setting after another, until the
posterior standard deviation of every target is reached. All strategies see the same truths, and all
have the same inference: weighted particles, updated after each datum. A line of JSON a campaign is
added to results.jsonl, with the true errors beside the standard deviations.

    uniform    equal steps over the space in an order of chance; an additive recurrence in 3-D
    random     uniform draws
    classical  what is usually done, see the case
    D, A       planned for the targets after every datum: D_s- and A_s-optimal, Laplace
    pce        planned for the targets by the contrastive bound of the information
    pce-all    the same for all unknowns
"""

import argparse
import importlib
import json
import os
import pathlib
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

from micjax.active.acquire.search import Box
from micjax.active.design.particles import start, update
from micjax.active.design.plan import limits, plan

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results.jsonl"
STRATEGIES = {
    "oscillator": ("uniform", "random", "classical", "D", "pce", "pce-all"),
    "features": ("uniform", "random", "classical", "D", "A"),
    "thon": ("uniform", "random", "classical", "D", "A"),
}


def settings(case, strategy: str, seed: int):
    """A function: key, problem, particles, x and y so far -> the next setting."""
    low, high = np.asarray(case.SPACE.lower), np.asarray(case.SPACE.upper)
    rng = np.random.default_rng(seed)
    golden = np.array([2.0])
    for _ in range(60):
        golden = (1 + golden) ** (1 / (low.size + 1))
    # evenly spread whenever one stops: equal steps in an order of chance (in their own order the
    # count would tell where the truth lies), in more dimensions an additive recurrence
    order, shift = rng.permutation(case.UNIFORM), rng.random(low.size)

    def choose(key, problem, particles, x, y):
        n = len(x)
        if strategy == "uniform" and low.size == 1:
            u = order[n % case.UNIFORM] / (case.UNIFORM - 1) * np.ones(1)
        elif strategy == "uniform":
            u = (shift + n * golden ** -np.arange(1.0, low.size + 1)) % 1.0
        elif strategy == "random":
            u = rng.random(low.size)
        elif strategy == "classical":
            return case.classical(n, x, y)
        else:
            measure, _, everything = strategy.partition("-")
            names = None if everything else case.TARGETS
            found = plan(
                key, problem, particles, case.SPACE, 1, names, measure=measure, **case.PLAN
            )
            return np.asarray(found.x[0]).reshape(-1)
        return low + u * (high - low)

    return choose


def truth(case, problem, key):
    """A draw of the priors among those that the case allows."""
    unknowns = problem.unknowns()
    while True:
        key, *keys = jax.random.split(key, len(unknowns) + 1)
        values = {n: p.sample(k) for k, (n, p) in zip(keys, unknowns.items(), strict=True)}
        if case.allowed(values):
            return problem.at(values)


def campaign(case, strategy: str, seed: int, most: int) -> dict:
    """Measure until every target is reached, `most` times at most."""
    key, problem = jax.random.key(seed), case.problem()
    true = truth(case, problem, jax.random.fold_in(key, 1))
    flat = case.SPACE.lower.size == 1  # one number a row: x is [n]
    x = jnp.asarray(case.SPACE.lower)
    particles = start(
        jax.random.fold_in(key, 2), problem, x if flat else x[None], count=case.PARTICLES
    )
    choose, xs, ys = settings(case, strategy, seed), np.zeros((0, x.size)), None
    history = {n: {"sd": [], "error": []} for n in case.TARGETS}
    seconds = []
    for step in range(most):
        now = jax.random.fold_in(key, 100 + step)
        began = time.process_time()
        new = choose(now, problem, particles, xs, ys)
        seconds.append(time.process_time() - began)
        xs = np.concatenate([xs, new[None]])
        row = jnp.asarray(new) if flat else jnp.asarray(new)[None]
        y = true.noise(true.forward(row)).sample(jax.random.fold_in(now, 1))
        ys = np.asarray(y) if ys is None else np.concatenate([ys, y])
        particles = update(jax.random.fold_in(now, 2), particles, problem, row, y)
        mean, sd = particles.mean(problem), particles.sd(problem)
        for n in case.TARGETS:
            history[n]["sd"].append(float(sd[n]))
            history[n]["error"].append(float(mean[n] - true.values()[n]))
        if all(sd[n] <= target for n, target in case.TARGETS.items()):
            break
    return {
        "case": case.__name__,
        "strategy": strategy,
        "seed": seed,
        "count": len(xs),
        "x": [[round(float(v), 3) for v in row] for row in xs],
        "reached": bool(all(sd[n] <= t for n, t in case.TARGETS.items())),
        "history": {
            n: {c: [float(f"{v:.4g}") for v in column] for c, column in h.items()}
            for n, h in history.items()
        },
        "cpu_seconds_a_plan": round(float(np.median(seconds)), 3),
    }


def campaigns() -> dict[tuple[str, str], list[dict]]:
    """The lines of results.jsonl by case and strategy; of a campaign run twice the last one."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    last = {(r["case"], r["strategy"], r["seed"]): r for r in lines}
    found: dict[tuple[str, str], list[dict]] = {}
    for (case, strategy, _), result in sorted(last.items()):
        found.setdefault((case, strategy), []).append(result)
    return found


def needed(results: list[dict]) -> np.ndarray:
    """Measurements of each campaign; infinite where the targets were not reached."""
    return np.array([r["count"] if r["reached"] else np.inf for r in results])


def table() -> str:
    """Markdown: measurements needed, how often that is at most half of uniform, and z."""
    rows, found = [], campaigns()
    for name in STRATEGIES:
        case = importlib.import_module(name)
        goal = ", ".join(f"{n.partition('.')[2]} {t:g}" for n, t in case.TARGETS.items())
        rows += [f"**{case.TITLE}**, until sd <= {goal}:", ""]
        rows += [
            "| strategy | seeds | measurements: median (quartiles) | at most half of uniform's, "
            "same truth | sd z | abs z > 1.645 | CPU s a plan |",
            "|---|---|---|---|---|---|---|",
        ]
        uniform = {r["seed"]: n for r, n in zip(*_counted(found, name, "uniform"), strict=True)}
        for strategy in STRATEGIES[name]:
            results, n = _counted(found, name, strategy)
            if not results:
                continue
            half = [2 * m <= uniform[r["seed"]] for r, m in zip(results, n, strict=True)]
            z = np.array(
                [h["error"][-1] / h["sd"][-1] for r in results for h in r["history"].values()]
            )
            low, middle, high = np.quantile(n, [0.25, 0.5, 0.75], method="nearest")
            label = f"classical: {case.LABEL}" if strategy == "classical" else strategy
            seconds = np.median([r["cpu_seconds_a_plan"] for r in results])
            rows.append(
                f"| {label} | {len(n)} | {middle:g} ({low:g} to {high:g}) | "
                f"{np.mean(half):.2f} | {z.std():.2f} | {np.mean(np.abs(z) > 1.645):.2f} | "
                f"{seconds:.2f} |"
            )
        rows.append("")
    return "\n".join(rows)


def _counted(found, case: str, strategy: str):
    results = found.get((case, strategy), [])
    return results, needed(results)


def figure(folder: pathlib.Path) -> None:
    """Standard deviation of the first target after each measurement, median and quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = campaigns()
    canvas, axes = plt.subplots(1, len(STRATEGIES), figsize=(13.0, 3.6), layout="constrained")
    for ax, name in zip(axes, STRATEGIES, strict=True):
        case = importlib.import_module(name)
        target, goal = next(iter(case.TARGETS.items()))
        for strategy in STRATEGIES[name]:
            results = found.get((name, strategy), [])
            if not results:
                continue
            # a campaign that has ended keeps its last value: it needed no more
            most = max(r["count"] for r in results)
            sd = np.array(
                [
                    np.pad(s := r["history"][target]["sd"], (0, most - len(s)), "edge")
                    for r in results
                ]
            )
            low, middle, high = np.quantile(sd, [0.25, 0.5, 0.75], axis=0)
            (line,) = ax.loglog(np.arange(1, most + 1), middle, label=strategy)
            ax.fill_between(
                np.arange(1, most + 1), low, high, color=line.get_color(), alpha=0.15, lw=0
            )
        ax.axhline(goal, color="k", ls=":", lw=1.0)
        ax.set(xlabel="measurements", ylabel=f"sd of {target.partition('.')[2]}", title=name)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        ax.legend(fontsize=7)
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / "planning.png", dpi=150)


def lows() -> None:
    """What features of 1 to 3 nm height cannot teach about the tip, whichever they are."""
    case = importlib.import_module("features")
    problem, low = case.problem(), Box([1.0, 1.0, 1.0], [3.0, 30.0, 20.0])
    particles = start(jax.random.key(0), problem, low.lower[None], count=case.PARTICLES)
    print(limits(jax.random.key(1), problem, particles, low, 1, **case.PLAN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=[*STRATEGIES, "table", "limits", "figure"])
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 20], metavar=("FIRST", "END"))
    parser.add_argument("--strategies", nargs="+", help="all of the case if not given")
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder of the figure")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if given.what == "table":
        print(table())
    elif given.what == "limits":
        lows()
    elif given.what == "figure":
        figure(given.out)
    else:
        case = importlib.import_module(given.what)
        for strategy in given.strategies or STRATEGIES[given.what]:
            for seed in range(*given.seeds):
                result = campaign(case, strategy, seed, case.LONGEST)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                reached = "" if result["reached"] else ", not reached"
                print(
                    f"{strategy} seed {seed}: {result['count']} measurements{reached}", flush=True
                )


if __name__ == "__main__":
    main()
