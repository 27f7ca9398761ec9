"""Two patterns of one crystal at two tilts, each fitted alone and both jointly, repeated.

    python experiments/joint_cbed/run.py [--repeats 40] [--dose 1e5]  one JSON line each, appended
    python experiments/joint_cbed/run.py --wrong 0.03 --repeats 10    camera length of b off by 3 %
    python experiments/joint_cbed/run.py --share thickness_A,u_A2     a strain for each pattern
    python experiments/joint_cbed/run.py --table                      what results.jsonl says

Each repeat draws a crystal and a tilt as `experiments/cbed/run.py` does, a second tilt and diffuse
share of the same laws, and counts of `dose` electrons a pattern from the model itself. Thickness, U
and strain are those of the crystal, and shared; with `--share thickness_A,u_A2` the strain is drawn
and fitted for each pattern. A pattern alone is solved by `micjax.problems.cbed` from its defaults;
the joint fit goes on from the better of the two.
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np

import micjax
from micjax.core.problem import neg_log_joint
from micjax.inference.solvers.gauss_newton import FisherScoring, expected_hessian
from micjax.physics.electrons.pacbed import Camera
from micjax.problems import cbed

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "cbed"))
from run import drawn, pixels  # noqa: E402

SHARED = ("thickness_A", "u_A2", "strain")
SOLVER = FisherScoring()


def problems(key, dose: float, shared):
    """A crystal under two tilts, with true values."""
    key_a, key_b = jax.random.split(key)
    a, b = drawn(key_a, dose), drawn(key_b, dose)
    same = {f"forward.{n}": a.values()[f"forward.{n}"] for n in shared}
    return {"a": a, "b": b.at(same)}


def camera_off(share: float) -> Camera:
    """Pixels whose angles are wrong by this share."""
    there, scale = pixels(), 1.0 + share
    return there._replace(
        direction_mrad=scale * there.direction_mrad, pixel_mrad=scale * there.pixel_mrad
    )


def solved(truths, data, dose: float, shared, key) -> dict:
    began, lines, starts = time.perf_counter(), {}, {}
    true = {n: float(truths["a"].values()[f"forward.{n}"]) for n in shared}
    for name, (x, y) in data.items():
        solution = micjax.solve(cbed, cbed.problem(dose=dose), x, y, key=key)
        lines[name] = compared(true, solution.problem, solution.laplace, "forward.", key)
        lines[name]["chi_squared_per_datum"] = solution.metrics["chi_squared_per_datum"]
        starts[name] = solution.problem.values()
    ties = {n: tuple(f"{p}.forward.{n}" for p in data) for n in shared}
    problem = micjax.joint({name: cbed.problem(dose=dose) for name in data}, ties)
    x, y = micjax.joint_data(problem, data)
    fit = micjax.fit(best_start(problem, starts, shared, x, y), x, y, SOLVER, steps=30, chunk=3)
    errors = micjax.laplace(fit.problem, x, y, hessian=expected_hessian(fit.problem, x, y))
    lines["joint"] = compared(true, fit.problem, errors, "forward.shared.", key)
    lines["joint"]["stop_reason"] = str(fit.stop_reason)
    told = micjax.tension(fit.problem, x, y, SOLVER, steps=30, expected=True)
    return {
        "truth": true
        | {f"tilt_{n}_mrad": np.asarray(p.forward.tilt_mrad).tolist() for n, p in truths.items()},
        **lines,
        "p_value": told.p_value,
        "chi_squared": told.chi_squared,
        "degrees_of_freedom": told.degrees_of_freedom,
        "seconds": round(time.perf_counter() - began, 1),
    }


def best_start(problem, starts, shared, x, y):
    """What each pattern says by itself; of what is shared, what suits both best."""
    own = {f"forward.{n}.{k}": v for n, values in starts.items() for k, v in values.items()}
    own = {n: v for n, v in own.items() if n in problem.values()}
    said = [{n: values[f"forward.{n}"] for n in shared} for values in starts.values()]
    said.append({n: sum(s[n] for s in said) / len(said) for n in shared})
    begun = [problem.at(own | {f"forward.shared.{n}": v for n, v in s.items()}) for s in said]
    return min(begun, key=lambda p: float(loss(p.unconstrain(p.values()), p, x, y)))


loss = jax.jit(neg_log_joint)


def compared(true, problem, laplace, prefix: str, key) -> dict:
    """Errors of what is shared, and whether the 90 % intervals hold the truth."""
    draws, values = laplace.sample(key, 4000), problem.values()
    line = {"error": {}, "half_width": {}, "covered": {}}
    for name, truth in true.items():
        low, high = np.quantile(draws[prefix + name], (0.05, 0.95))
        line["error"][name] = float(values[prefix + name]) - truth
        line["half_width"][name] = float(high - low) / 2
        line["covered"][name] = bool(low < truth < high)
    return line


def table(lines: list[dict]) -> None:
    for shared in sorted({tuple(line["shared"]) for line in lines}):
        print(f"shared: {', '.join(shared)}")
        table_of([line for line in lines if tuple(line["shared"]) == shared], shared)


def table_of(lines: list[dict], shared) -> None:
    right = [line for line in lines if not line["wrong"]]
    size = {
        fit: np.abs([line[fit]["error"]["thickness_A"] for line in right])
        for fit in ("a", "b", "joint")
    }
    rms = {fit: float(np.sqrt(np.mean(e**2))) for fit, e in size.items()}
    print(f"{len(right)} repeats: error of the thickness (A), and 90 % intervals that hold")
    for fit, errors in size.items():
        held = [sum(line[fit]["covered"][n] for line in right) for n in shared]
        print(f"{fit:<6} median {np.median(errors):.3f}  rms {rms[fit]:.3f}  held {held}")
    draws = np.random.default_rng(0).integers(len(right), size=(2000, len(right)))
    again = {fit: np.sqrt(np.mean(e[draws] ** 2, axis=1)) for fit, e in size.items()}
    ratio = rms["joint"] / min(rms["a"], rms["b"])
    spread = np.std(again["joint"] / np.minimum(again["a"], again["b"]))
    luckier = np.sqrt(np.mean(np.minimum(size["a"], size["b"]) ** 2))
    print(f"rms joint / smaller rms of a and b: {ratio:.3f} +- {spread:.3f} (bootstrap)")
    print(f"rms joint / rms of whichever was closer in each repeat: {rms['joint'] / luckier:.3f}")
    for wrong in sorted({line["wrong"] for line in lines}):
        p = np.array([line["p_value"] for line in lines if line["wrong"] == wrong])
        print(
            f"camera length of b {wrong:.0%} wrong: p < 0.01 in {np.sum(p < 0.01)} of {len(p)}",
            end="",
        )
        print(f", largest {p.max():.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--dose", type=float, default=1e5)
    parser.add_argument("--wrong", type=float, default=0.0)
    parser.add_argument("--share", type=lambda names: tuple(names.split(",")), default=SHARED)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    given = parser.parse_args()
    if given.table:
        return table([json.loads(line) for line in given.out.read_text().splitlines()])
    for seed in range(given.first, given.first + given.repeats):
        truth_key, noise_key, key = jax.random.split(jax.random.key(seed), 3)
        truths, data = problems(truth_key, given.dose, given.share), {}
        off = {"a": pixels(), "b": camera_off(given.wrong)}
        for (name, truth), k in zip(truths.items(), jax.random.split(noise_key), strict=True):
            y = truth.noise(truth.forward(pixels())).sample(k).astype(float)
            data[name] = off[name], y
        line = {"seed": seed, "dose": given.dose, "wrong": given.wrong, "shared": given.share}
        line = json.dumps(line | solved(truths, data, given.dose, given.share, key))
        print(line, flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")
    return None


if __name__ == "__main__":
    main()
