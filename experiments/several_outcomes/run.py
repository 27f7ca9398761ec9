"""How good are the fronts, and the best feasible points, after equally many measurements?

    python experiments/several_outcomes/run.py micjax --seeds 100 103
    PEERS/bin/python experiments/several_outcomes/run.py botorch --seeds 100 103
    python experiments/several_outcomes/run.py random --seeds 100 103
    python experiments/several_outcomes/run.py table

Every method begins with the same points of a scrambled Sobol sequence. No outcome has noise.

    micjax   `Learner` with `outcomes`, as it is
    botorch  a SingleTaskGP for each outcome; of objectives qLogEHVI (128 draws), of limits
             LogConstrainedExpectedImprovement over the best feasible outcome; 8 restarts of 256
    random   uniform points

    branin_currin  two objectives on 2 axes (Daulton et al. 2020), reference (18, 6)
    zdt1           two objectives on 3 axes (Zitzler et al. 2000), reference (1.1, 1.1)
    gardner        one objective and a limit on 2 axes (Gardner et al. 2014, simulation 1)

Adds a line of JSON for each run to results.jsonl. `missing` is what lacks in the end: of fronts,
the fraction of the hypervolume of the whole front; else the best feasible value less the lowest.
"""

import argparse
import json
import os
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy.stats import qmc

RESULTS = pathlib.Path(__file__).parent / "results.jsonl"
METHODS = ("micjax", "botorch", "random")


class Case(NamedTuple):
    """Outcomes on the unit cube, all objectives to be minimised."""

    axes: int
    total: int  # measurements
    outcomes: Callable[[np.ndarray], np.ndarray]  # [n, d] -> [n, 2]
    reference: tuple[float, float] | None  # of two objectives; else the second has a limit
    best: float  # hypervolume of the front, or the lowest feasible value
    at_most: float = 0.0


def branin_currin(x):
    u, v = 15.0 * x[:, 0] - 5.0, 15.0 * x[:, 1]
    branin = (v - 5.1 / (4 * np.pi**2) * u**2 + 5 / np.pi * u - 6) ** 2
    branin = branin + 10 * (1 - 1 / (8 * np.pi)) * np.cos(u) + 10
    a, b = x[:, 0], np.maximum(x[:, 1], 1e-12)
    top = 2300 * a**3 + 1900 * a**2 + 2092 * a + 60
    currin = (1 - np.exp(-1 / (2 * b))) * top / (100 * a**3 + 500 * a**2 + 4 * a + 20)
    return np.stack([branin, currin], axis=1)


def zdt1(x):
    g = 1 + 9 * x[:, 1:].mean(axis=1)
    return np.stack([x[:, 0], g * (1 - np.sqrt(x[:, 0] / g))], axis=1)


def gardner(x):
    u, v = 6.0 * x[:, 0], 6.0 * x[:, 1]
    value = np.cos(2 * u) * np.cos(v) + np.sin(u)
    return np.stack([value, np.cos(u) * np.cos(v) - np.sin(u) * np.sin(v)], axis=1)


def lowest_feasible() -> float:
    """Of `gardner`, on a fine grid."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 3001)] * 2), -1).reshape(-1, 2)
    value, limited = gardner(grid).T
    return float(value[limited <= 0.5].min())


CASES = {
    "branin_currin": Case(2, 30, branin_currin, (18.0, 6.0), 59.36011874867746),
    "zdt1": Case(3, 30, zdt1, (1.1, 1.1), 1.1**2 - 1.0 / 3.0),
    "gardner": Case(2, 25, gardner, None, lowest_feasible(), at_most=0.5),
}


def begun(case: Case, seed: int) -> np.ndarray:
    """The first points, those of a learner of this seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a number that is no power of two
        return qmc.Sobol(case.axes, rng=seed).random(max(5, 2 * case.axes + 1))


def micjax(case: Case, seed: int):
    """What suggests the next point, from all points and outcomes so far."""
    from micjax.active.learner.learner import Learner
    from micjax.active.learner.space import SearchAxis, Space

    space = Space([SearchAxis(f"x{i}") for i in range(case.axes)])
    if case.reference is None:
        wanted = {"b": {"at_most": case.at_most}}
    else:
        a, b = case.reference
        wanted = {"a": {"reference": a}, "b": {"goal": "minimise", "reference": b}}
    learner = Learner(space, outcome="a", goal="minimise", outcomes=wanted, seed=seed)

    def suggested(points, y):
        fresh = range(len(learner.values), len(y))
        each = [dict(zip(space.names, points[i].tolist(), strict=True)) for i in fresh]
        told = [{"a": float(y[i, 0]), "b": float(y[i, 1])} for i in fresh]
        learner.ingest([p | o for p, o in zip(each, told, strict=True)])
        return space.numbers(learner.suggest()[0])

    return suggested


def botorch(case: Case, seed: int):
    import torch
    from botorch import fit_gpytorch_mll
    from botorch.acquisition.analytic import LogConstrainedExpectedImprovement
    from botorch.acquisition.multi_objective.logei import qLogExpectedHypervolumeImprovement
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.optim import optimize_acqf
    from botorch.sampling.normal import SobolQMCNormalSampler
    from botorch.utils.multi_objective.box_decompositions.non_dominated import (
        FastNondominatedPartitioning,
    )
    from gpytorch.mlls import SumMarginalLogLikelihood

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    bounds = torch.tensor([[0.0] * case.axes, [1.0] * case.axes])

    def suggested(points, y):
        x, values = torch.tensor(points), -torch.tensor(y)  # to be maximised
        model = ModelListGP(*[SingleTaskGP(x, values[:, i : i + 1]) for i in range(2)])
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        if case.reference is None:
            kept = values[:, 1] >= -case.at_most
            best = values[kept, 0].max() if kept.any() else values[:, 0].min()
            value = LogConstrainedExpectedImprovement(
                model, best, objective_index=0, constraints={1: (-case.at_most, None)}
            )
        else:
            reference = -torch.tensor(case.reference)
            value = qLogExpectedHypervolumeImprovement(
                model,
                reference,
                FastNondominatedPartitioning(reference, values),
                sampler=SobolQMCNormalSampler(torch.Size([128]), seed=seed),
            )
        best_points, _ = optimize_acqf(value, bounds, q=1, num_restarts=8, raw_samples=256)
        return best_points.numpy()[0]

    return suggested


def random(case: Case, seed: int):
    rng = np.random.default_rng([5, seed])
    return lambda points, y: rng.uniform(size=case.axes)


def missing(case: Case, y: np.ndarray) -> float:
    if case.reference is None:
        kept = y[:, 1] <= case.at_most
        return float(y[kept, 0].min() - case.best) if kept.any() else float("inf")
    return 1.0 - area(y, case.reference) / case.best


def area(y: np.ndarray, reference: tuple[float, float]) -> float:
    """What two objectives dominate, by its staircase."""
    total, floor = 0.0, reference[1]
    for a, b in sorted(y.tolist()):
        if a < reference[0] and b < floor:
            total += (reference[0] - a) * (floor - b)
            floor = b
    return total


def run(method: str, name: str, seed: int) -> dict:
    case = CASES[name]
    began = time.process_time()
    suggested = {"micjax": micjax, "botorch": botorch, "random": random}[method](case, seed)
    points = begun(case, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(points) < case.total:
            y = case.outcomes(points)
            points = np.concatenate([points, np.asarray(suggested(points, y))[None]])
    return {
        "method": method,
        "case": name,
        "seed": seed,
        "missing": missing(case, case.outcomes(points)),
        "cpu_s": round(time.process_time() - began, 2),
    }


def table() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    print("| case | measurements | " + " | ".join(METHODS) + " |")
    print("|---|---|" + "---|" * len(METHODS))
    for name, case in CASES.items():
        cells = []
        for method in METHODS:
            mine = [r["missing"] for r in rows if (r["method"], r["case"]) == (method, name)]
            cells.append(
                f"{np.median(mine):.2g} ({min(mine):.2g} to {max(mine):.2g}; {len(mine)} seeds)"
                if mine
                else "not run"
            )
        print(f"| {name} | {case.total} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=(*METHODS, "table"))
    parser.add_argument("--seeds", type=int, nargs=2, default=(100, 103), metavar=("FROM", "TO"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    if given.method == "table":
        return table()
    for seed in range(*given.seeds):
        for name in given.cases:
            line = json.dumps(run(given.method, name, seed))
            print(line, flush=True)
            with RESULTS.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
