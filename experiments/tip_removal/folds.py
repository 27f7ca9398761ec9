"""The forty scans of a fold, with the tip known and unknown.

    python experiments/tip_removal/folds.py --data ../shared/data/afm [--fold held] [--cases blunt]
    python experiments/tip_removal/folds.py --fold held --table

Prints one JSON line a case and appends it to FOLD.jsonl beside this file.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from cases import PIXEL_NM, WINDOW_PX, Case, cases

import micjax
from micjax.physics.tips.dilation import erode
from micjax.problems import tip as problem_tip

HERE = pathlib.Path(__file__).parent
MARGIN = 12  # pixels left out at the border
REACH = 8  # pixels, the largest shift of the alignment
SIGMAS = 3.0  # a certain pixel is right within that many


def aligned(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The error within the margin at the best shift by whole pixels, without its mean."""
    m, (ny, nx) = MARGIN, truth.shape
    inner = truth[m:-m, m:-m]
    errors = [
        estimate[m + dy : ny - m + dy, m + dx : nx - m + dx] - inner
        for dy in range(-REACH, REACH + 1)
        for dx in range(-REACH, REACH + 1)
    ]
    return min((e - e.mean() for e in errors), key=np.var)


def psnr(estimate: np.ndarray, truth: np.ndarray) -> float:
    error = aligned(np.asarray(estimate), truth)
    return float(10 * np.log10(np.ptp(truth) ** 2 / np.mean(error**2)))


def certain(solution, truth: np.ndarray, sigma_nm: float) -> dict[str, int]:
    """How many pixels are called certain, and how many of them are right within 3 sigma.

    At the shift by whole pixels that makes most of the whole surface right, and the median height
    of what is certain: a blind method can know neither. (The shift of the least mean square would
    be that of the trenches that no tip has reached.)
    """
    surface, mask = (np.asarray(solution.results[n].data) for n in ("surface", "certain"))
    m, (ny, nx) = MARGIN, truth.shape
    inner = truth[m:-m, m:-m]

    def within(error):
        return np.abs(error - np.median(error)) < SIGMAS * sigma_nm if error.size else error

    def at(image, shift):
        dy, dx = shift
        return image[m + dy : ny - m + dy, m + dx : nx - m + dx]

    shifts = [(y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
    best = max(shifts, key=lambda s: within(at(surface, s) - inner).sum())
    sure = (at(surface, best) - inner)[at(mask, best).astype(bool)]
    return {"pixels": int(sure.size), "right": int(within(sure).sum())}


def loaded(case: Case, folder: pathlib.Path, **options):
    """As from a file."""
    file = folder / "scan.npz"
    np.savez(file, height=case.image, pixel_nm=PIXEL_NM)
    if options.pop("known", False):
        np.savez(folder / "tip.npz", tip=case.tip, pixel_nm=PIXEL_NM)
        options["known_tip"] = str(folder / "tip.npz")
    else:
        options["tip_size"] = WINDOW_PX
    return problem_tip.load(str(file), **options)


def solve(case: Case, folder: pathlib.Path, key, **options):
    given, x, y = loaded(case, folder, **options)
    problem = problem_tip.problem(**given)
    return micjax.solve(problem_tip, problem, x, y, key=key, posterior="none")


def row(case: Case, folder: pathlib.Path, key, only_blind: bool) -> dict:
    began = time.monotonic()
    known_key, blind_key, stated_key = jax.random.split(key, 3)
    tip, truth = jnp.asarray(case.tip, case.image.dtype), case.surface
    solutions = {"blind": solve(case, folder, blind_key)}
    if not only_blind:
        solutions["known"] = solve(case, folder, known_key, known=True)
        solutions["stated"] = solve(case, folder, stated_key, sigma_nm=case.sigma_nm)
    blind = solutions["blind"]
    return {
        "case": case.name,
        "image": psnr(case.image, truth),
        "villarrubia": psnr(blind.results["classical_surface"].data, truth),
        "oracle": psnr(erode(jnp.asarray(case.image), tip), truth),
        **{n: psnr(s.results["surface"].data, truth) for n, s in solutions.items()},
        **{f"{n}_certain": certain(s, truth, case.sigma_nm) for n, s in solutions.items()},
        "noise_over_true": blind.metrics["noise_nm"] / case.sigma_nm,
        "admissible": blind.extra["found"].passes,
        "first": blind.statements[0],
        "seconds": round(time.monotonic() - began, 1),
    }


def table(rows: list[dict]) -> str:
    """As Markdown, a line for each case, with what is true of them all."""
    order = ("image", "villarrubia", "oracle", "known", "blind", "stated")
    columns = [c for c in order if c in rows[0]]
    sure = [f"{c}_certain" for c in ("known", "blind", "stated") if c in rows[0]]
    heads = ["tip/surface/noise", *columns, *(f"{s.split('_')[0]}: certain (right)" for s in sure)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, group in [(r["case"], [r]) for r in rows] + [("all", rows)]:
        means = [f"{np.mean([r[c] for r in group]):.1f}" for c in columns]
        lines.append("| " + " | ".join([name, *means, *(share(group, s) for s in sure)]) + " |")
    for better, worse in (
        ("oracle", "image"),
        ("blind", "image"),
        ("villarrubia", "image"),
        ("known", "oracle"),
        ("stated", "image"),
    ):
        if better in rows[0]:
            gains = np.array([r[better] - r[worse] for r in rows])
            lines.append(
                f"\n{better} - {worse}: mean {gains.mean():+.2f} dB, worst {gains.min():+.2f} dB, "
                f"below -0.2 dB: {(gains < -0.2).sum()} of {len(rows)}"
            )
    return "\n".join(lines)


def share(rows: list[dict], name: str) -> str:
    pixels, right = (sum(r[name][n] for r in rows) for n in ("pixels", "right"))
    inside = 72 * 72 * len(rows)
    return f"{pixels / inside:.3f} ({right / pixels:.3f})" if pixels else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, help="folder of the AFM scans")
    parser.add_argument("--fold", choices=("tune", "held"), default="tune")
    parser.add_argument("--cases", default="", help="those whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="only each n-th of them")
    parser.add_argument("--first", type=int, default=0, help="the first one of these")
    parser.add_argument("--blind", action="store_true", help="not with the known tip or noise")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    out = arguments.out or HERE / f"{arguments.fold}.jsonl"
    if arguments.table:
        print(table([json.loads(line) for line in out.read_text().splitlines()]))
        return
    with tempfile.TemporaryDirectory() as folder:
        chosen = [c for c in cases(arguments.fold, arguments.data) if arguments.cases in c.name]
        for n, case in enumerate(chosen[arguments.first :: arguments.every]):
            line = row(case, pathlib.Path(folder), jax.random.key(n), arguments.blind)
            print(json.dumps(line), flush=True)
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
