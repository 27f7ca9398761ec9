"""How often is the highest of several peaks reached, and what is missing in the end?

    python experiments/global_optimum/run.py micjax --seeds 100 102
    PEERS/bin/python experiments/global_optimum/run.py botorch --seeds 100 102
    PEERS/bin/python experiments/global_optimum/run.py sklearn --seeds 100 102
    python experiments/global_optimum/run.py random --seeds 100 102
    python experiments/global_optimum/run.py table

Every method begins with the same 2 d + 1 (at least 5) points of a scrambled Sobol sequence and has
the same number of measurements, whose noise is the same at the same number.

    micjax   `Learner`, as it is
    botorch  SingleTaskGP, log-EI over the best outcome, 8 restarts of 256 samples
    sklearn  a process, Matérn 5/2 with one length an axis, white noise, outcomes to mean 0
             and standard deviation 1; EI over the best outcome at 4,096 random points
    random   uniform points

Adds a line of JSON for each run to results.jsonl. A run has reached the highest peak when the true
value of a point that it measured lies above every other optimum. Regret: the highest value less the
true one of the point whose outcome was the best.
"""

import argparse
import json
import os
import pathlib
import time
import warnings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from functions import FUNCTIONS, Function
from scipy.stats import norm, qmc

RESULTS = pathlib.Path(__file__).parent / "results.jsonl"
METHODS = ("micjax", "botorch", "sklearn", "random")


def begun(function: Function, seed: int) -> np.ndarray:
    """The first points, those of a learner of this seed."""
    count = max(5, 2 * function.axes + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a number that is no power of two
        return qmc.Sobol(function.axes, rng=seed).random(count)


def micjax(function: Function, seed: int):
    """What suggests the next point, from all points and outcomes so far."""
    from micjax.active.learner.learner import Learner
    from micjax.active.learner.space import SearchAxis, Space

    space = Space([SearchAxis(f"x{i}") for i in range(function.axes)])
    learner = Learner(space, seed=seed)

    def suggested(points, y):
        fresh = range(len(learner.data[1]), len(y))
        learner.ingest(
            [dict(zip(space.names, points[i].tolist(), strict=True)) | {"y": y[i]} for i in fresh]
        )
        return space.numbers(learner.suggest()[0])

    return suggested


def botorch(function: Function, seed: int):
    import torch
    from botorch import fit_gpytorch_mll
    from botorch.acquisition import LogExpectedImprovement
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    bounds = torch.tensor([[0.0] * function.axes, [1.0] * function.axes])

    def suggested(points, y):
        y = torch.tensor(y)[:, None]
        model = SingleTaskGP(torch.tensor(points), y)  # which standardises the outcomes
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        value = LogExpectedImprovement(model, best_f=y.max())
        found, _ = optimize_acqf(value, bounds, q=1, num_restarts=8, raw_samples=256)
        return found.numpy()[0]

    return suggested


def sklearn(function: Function, seed: int):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    rng = np.random.default_rng([3, seed])

    def suggested(points, y):
        kernel = ConstantKernel() * Matern(np.full(function.axes, 0.3), nu=2.5)
        process = GaussianProcessRegressor(
            kernel + WhiteKernel(1e-3, (1e-8, 1.0)),
            normalize_y=True,
            n_restarts_optimizer=2,
            random_state=seed,
        ).fit(points, y)
        tried = rng.uniform(size=(4096, function.axes))
        mean, sd = process.predict(tried, return_std=True)
        u = (mean - y.max()) / sd
        return tried[np.argmax(sd * (norm.pdf(u) + u * norm.cdf(u)))]

    return suggested


def random(function: Function, seed: int):
    rng = np.random.default_rng([5, seed])
    return lambda points, y: rng.uniform(size=function.axes)


def run(method: str, name: str, seed: int) -> dict:
    function = FUNCTIONS[name]
    began = time.process_time()
    suggested = {"micjax": micjax, "botorch": botorch, "sklearn": sklearn, "random": random}[
        method
    ](function, seed)
    points = begun(function, seed)
    noise = np.random.default_rng([11, seed]).normal(size=function.total)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while True:
            true = function.value(points)
            y = true + function.noise_sd * noise[: len(points)]
            if len(points) == function.total:
                break
            points = np.concatenate([points, np.asarray(suggested(points, y))[None]])
    return {
        "method": method,
        "function": name,
        "seed": seed,
        "reached": bool(true.max() > function.second),
        "regret": float(function.top - true[np.argmax(y)]),
        "cpu_s": round(time.process_time() - began, 2),
    }


def table() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    print("| function | axes | measurements | " + " | ".join(METHODS) + " |")
    print("|---|---|---|" + "---|" * len(METHODS))
    for name, function in FUNCTIONS.items():
        cells = []
        for method in METHODS:
            mine = [r for r in rows if r["method"] == method and r["function"] == name]
            reached = sum(r["reached"] for r in mine)
            regret = np.median([r["regret"] for r in mine]) if mine else np.nan
            cells.append(f"{reached} of {len(mine)}, {regret:.2g}")
        print(f"| {name} | {function.axes} | {function.total} | " + " | ".join(cells) + " |")
    made = [{(r["function"], r["seed"]) for r in rows if r["method"] == m} for m in METHODS]
    common = set.intersection(*made)
    shares = []
    for method in METHODS:
        mine = [r for r in rows if r["method"] == method]
        mine = [r["reached"] for r in mine if (r["function"], r["seed"]) in common]
        shares.append(f"{sum(mine)} of {len(mine)}")
    print("| reached, of the runs that all made | | | " + " | ".join(shares) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=(*METHODS, "table"))
    parser.add_argument("--seeds", type=int, nargs=2, default=(100, 102), metavar=("FROM", "TO"))
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--dry", action="store_true", help="print only")
    given = parser.parse_args()
    if given.method == "table":
        return table()
    for seed in range(*given.seeds):
        for name in given.functions:
            line = json.dumps(run(given.method, name, seed))
            print(line, flush=True)
            if not given.dry:
                with RESULTS.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
