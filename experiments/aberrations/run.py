"""All aberrations to third order from four images through focus, for many microscopes and objects.

    python experiments/aberrations/run.py [--repeats 20] [--specimen clusters]
        one JSON line each, appended
    python experiments/aberrations/run.py --table
        what results.jsonl says


Each repeat draws all twelve aberrations and the drift between the images from their priors, and
gold on carbon; 256 x 256 pixels of 0.25 Å, 200 keV, 25 mrad, C10 changed by -150, -50, 50
and 150 Å. An error is measured as the change of defocus that is as large at the edge of the
aperture, and is within the bar where that is below 5 Å or 2 % of the aberration.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
from scipy.stats import norm

import micjax
from micjax.inference.solve import fit_stages
from micjax.problems import aberrations
from micjax.problems.aberrations.stages import odd_times, stages

HERE = pathlib.Path(__file__).parent
BAR_A, PART = 5.0, 0.02
PIXELS, SEMIANGLE_MRAD = 256, 25.0


def coefficients(values) -> dict[str, float]:
    pairs = zip(aberrations.FOUND, aberrations.NAMES, strict=True)
    return {c: float(values[n]) for c, n in pairs}


def as_defocus(values_A: dict[str, float]) -> dict[str, float]:
    return aberrations.defocus_A(values_A, SEMIANGLE_MRAD)


def error(values, truth) -> dict[str, float]:
    true = coefficients(truth)
    return as_defocus({c: v - true[c] for c, v in coefficients(values).items()})


def spectra_alone(problem, x, y, truth) -> dict[str, float]:
    """Of a fit to the power spectra of the images (diffractograms), which cannot tell the sign of
    odd aberrations: that of the better sign."""
    best = fit_stages(problem, x, y, stages(problem, x, y)[:3]).problem  # those that know no phases
    both = [error(odd_times(sign, best), truth) for sign in (1.0, -1.0)]
    return min(both, key=lambda e: max(map(abs, e.values())))


def repeat(seed: int, counts: float, specimen: str) -> dict:
    truth, x, y = aberrations.example(jax.random.key(seed), PIXELS, PIXELS, counts, specimen)
    problem = aberrations.problem(4, PIXELS, PIXELS, mean_counts=counts)
    true = truth.values()
    alone = spectra_alone(problem, x, y, true)
    began = time.perf_counter()
    solution = micjax.solve(aberrations, problem, x, y, key=jax.random.key(0))
    seconds = time.perf_counter() - began
    best, sd = solution.problem.values(), coefficients(solution.laplace.sd())
    off = {c: v - coefficients(true)[c] for c, v in coefficients(best).items()}
    return {
        "seed": seed,
        "specimen": specimen,
        "counts": counts,
        "truth": as_defocus(coefficients(true)),
        "error": error(best, true),
        "spectra_alone": alone,
        "z": {c: off[c] / sd[c] for c in off},
        "model_error": solution.metrics["model_error"],
        "statements": list(solution.statements),
        "seconds": round(seconds, 1),
    }


def table(lines: list[dict]) -> None:
    truth, names = [r["truth"] for r in lines], list(lines[0]["truth"])

    def worst(kind: str) -> np.ndarray:
        """The largest error of each repeat, in units of what is allowed."""
        errors = [r[kind] for r in lines]
        return np.array(
            [
                max(abs(e[n]) / max(BAR_A, PART * abs(t[n])) for n in names)
                for e, t in zip(errors, truth, strict=True)
            ]
        )

    print(f"{len(lines)} repeats, {lines[0]['counts']:.0f} electrons a pixel,")
    print(f"{np.median([r['seconds'] for r in lines]):.0f} s each (medians)")
    print("largest error / allowed    median     90 %    worst    all twelve within")
    rows = {"truth": "nothing", "spectra_alone": "power spectra alone", "error": "aberrations"}
    for kind, title in rows.items():
        size = worst(kind)
        print(
            f"{title:<24} {np.median(size):>8.2f} {np.quantile(size, 0.9):>8.2f} "
            f"{size.max():>8.2f}    {int((size <= 1.0).sum()):>6} of {len(size)}"
        )
    print("\nas defocus (Å)   sd of truth   median |error|    worst   90 % intervals that hold it")
    for n in names:
        errors = np.abs([r["error"][n] for r in lines])
        held = sum(abs(r["z"][n]) < norm.ppf(0.95) for r in lines)
        print(
            f"{n:<14} {np.std([t[n] for t in truth]):>12.1f} {np.median(errors):>16.2f} "
            f"{errors.max():>8.2f} {held:>12} of {len(lines)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--counts", type=float, default=100.0, help="electrons a pixel")
    parser.add_argument("--specimen", choices=aberrations.SPECIMENS, default="clusters")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    given = parser.parse_args()
    if given.table:
        lines = [json.loads(line) for line in given.out.read_text().splitlines()]
        for specimen in aberrations.SPECIMENS:
            if some := [r for r in lines if r["specimen"] == specimen]:
                print(f"--- {specimen}: ", end="")
                table(some)
        return None
    for seed in range(given.first, given.first + given.repeats):
        line = json.dumps(repeat(seed, given.counts, given.specimen))
        print(line, flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")
    return None


if __name__ == "__main__":
    main()
