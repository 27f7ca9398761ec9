"""The posterior of a double tip from one scan of a known characteriser, seed by seed.

    python experiments/tip_posterior/run.py [--seeds 0 1 2] [--size 96] [--chains 4] [--draws 256]
    python experiments/tip_posterior/run.py --calibration 40

96 x 96 pixels of 1 nm of sharp cones (pitch 24 nm, height 12 nm), a tip of 17 x 17 pixels, noise
0.3 nm rms. Prints one JSON line a seed, which changes the noise, the starts and the chains. With
`--chains 0` only the fits are made: how many starts end in the best basin. `--calibration N`: are
the error bars right? z = (best value - truth) / Laplace sd over N noise seeds.
"""

import argparse
import json
import os
import pathlib
import platform
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import optax

import micjax
from micjax.problems import tip_characteriser as problem_tip
from micjax.problems.tip_characteriser.show import elements


def parameters(posterior, truth) -> dict[str, dict[str, float]]:
    """{label: mean, sd, truth, z, r_hat, ess} of each scalar unknown."""
    columns = {
        "mean": posterior.mean(),
        "sd": posterior.sd(),
        "truth": truth,
        "r_hat": posterior.r_hat(),
        "ess": posterior.ess(),
    }
    rows = {}
    for name, index, label in elements(truth):
        row = {c: float(np.asarray(table[name])[index]) for c, table in columns.items()}
        row["z"] = (row["mean"] - row["truth"]) / row["sd"]
        rows[label] = {c: float(f"{v:.5g}") for c, v in row.items()}
    return rows


def run(seed: int, size: int, **engine) -> dict:
    example_key, key = jax.random.split(jax.random.key(seed))
    truth, x, y = problem_tip.example(example_key, size, size)
    began, busy = time.perf_counter(), time.process_time()
    solution = micjax.solve(problem_tip, problem_tip.problem(size, size), x, y, key=key, **engine)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - busy
    good, losses = solution.extra["good"], solution.fit.starts_losses
    line = {
        "seed": seed,
        "size": size,
        **engine,
        "starts_in_best_basin": int(good.sum()),
        "next_basin_nats": round(float(losses[~good].min() - losses.min()), 1)
        if not good.all()
        else None,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "tip_rms_error_nm": {
            row["quantity"].removeprefix("tip: "): round(row["rms error (nm)"], 4)
            for row in problem_tip.compare(solution, x, y, truth)
            if "rms error (nm)" in row
        },
    }
    if solution.posterior is not None:
        rows = parameters(solution.posterior, truth.values())
        line |= {
            "parameters": rows,
            "divergences": solution.posterior.divergences,
            "worst_z": max(abs(r["z"]) for r in rows.values()),
            "worst_r_hat": max(r["r_hat"] for r in rows.values()),
            "least_ess": min(r["ess"] for r in rows.values()),
        }
        line["passes"] = (
            line["worst_z"] < 3 and line["worst_r_hat"] < 1.01 and line["divergences"] == 0
        )
    return line


def calibration(n: int, size: int) -> dict:
    """Mean and standard deviation of z over `n` noise seeds; 0 and 1 when the errors are right."""
    truth, x, _ = problem_tip.example(jax.random.key(0), size, size)
    clean, true = truth.forward(x), truth.values()
    solver, z = optax.adam(optax.cosine_decay_schedule(0.01, 400)), []
    for seed in range(n):
        y = truth.noise(clean).sample(jax.random.key(1000 + seed))
        best = micjax.fit(truth, x, y, solver, steps=400).problem
        sd, found = micjax.laplace(best, x, y).sd(), best.values()
        z.append([(found[n][i] - true[n][i]) / sd[n][i] for n, i, _ in elements(true)])
    labels = [label for *_, label in elements(true)]
    columns = {"mean_z": np.mean(z, axis=0), "sd_z": np.std(z, axis=0)}
    return {"noise_seeds": n, "size": size} | {
        c: {label: round(float(v), 2) for label, v in zip(labels, values, strict=True)}
        for c, values in columns.items()
    }


def machine() -> dict:
    """Where the seconds come from."""
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "precision": "float64",
        "jax": jax.__version__,
        "device": jax.devices()[0].platform,
        "cpu": cpu,
        "threads": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=96, help="pixels along each side")
    parser.add_argument("--draws", type=int, default=256, help="points drawn from the priors")
    parser.add_argument("--starts", type=int, default=12)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--calibration", type=int, default=0, metavar="N")
    given = vars(parser.parse_args())
    jax.config.update("jax_enable_x64", True)
    if n := given.pop("calibration"):
        print(json.dumps(calibration(n, given["size"]) | machine()))
        return
    for seed in given.pop("seeds"):
        print(json.dumps(run(seed, **given) | machine()), flush=True)


if __name__ == "__main__":
    main()
