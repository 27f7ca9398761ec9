"""The classical blind estimate at its best: every threshold and smoothing of a grid.

    python experiments/tip_removal/classical.py --data ../shared/data/afm --fold tune
    python experiments/tip_removal/classical.py --table tune held

A case gives a JSON line with the PSNR (dB) of erosion by each estimate, `threshold/smoothing` in
sigma and pixels; the sigma is the true one. The table holds the pair that is best on the first fold
against the others, and beside it the best pair of each case, which nobody knows without the truth.
"""

import argparse
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from cases import WINDOW_PX, Case, cases
from folds import HERE, psnr
from scipy import ndimage

from micjax.physics.tips.dilation import erode
from micjax.physics.tips.villarrubia import villarrubia

THRESHOLDS = (1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0)
SMOOTHINGS_PX = (0.0, 0.5, 1.0, 1.5)


def row(case: Case) -> dict:
    estimates, flat = {}, 0
    for smoothing in SMOOTHINGS_PX:
        image = jnp.asarray(
            ndimage.gaussian_filter(case.image, smoothing) if smoothing else case.image
        )
        for threshold in THRESHOLDS:
            tip, _ = villarrubia(image[None], (WINDOW_PX,) * 2, threshold * case.sigma_nm)
            flat += float(jnp.min(tip)) == 0.0  # no maximum is a tip away from the border
            estimates[f"{threshold:g}/{smoothing:g}"] = psnr(erode(image, tip), case.surface)
    return {"case": case.name, "image": psnr(case.image, case.surface), "flat": flat} | estimates


def table(folds: list[str]) -> str:
    rows = {f: [json.loads(line) for line in _file(f).read_text().splitlines()] for f in folds}
    names = [n for n in rows[folds[0]][0] if "/" in n]
    gains = {
        f: np.array([[r[n] - r["image"] for n in names] for r in of]) for f, of in rows.items()
    }
    best = int(np.argmax(gains[folds[0]].mean(0)))
    lines = [f"threshold/smoothing {names[best]} is the best on {folds[0]}"]
    for fold, gain in gains.items():
        lines.append(
            f"{fold}, {len(gain)} cases: {gain[:, best].mean():+.2f} dB over the image, worst "
            f"{gain[:, best].min():+.2f}; the best pair of each case {gain.max(1).mean():+.2f}; "
            f"flat tips in {sum(r['flat'] > 0 for r in rows[fold])} cases"
        )
    return "\n".join(lines)


def _file(fold: str) -> pathlib.Path:
    return HERE / f"classical-{fold}.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, help="folder of the AFM scans")
    parser.add_argument("--fold", choices=("tune", "held"), default="tune")
    parser.add_argument("--every", type=int, default=1, help="only each n-th case")
    parser.add_argument("--first", type=int, default=0, help="the first one of these")
    parser.add_argument("--table", nargs="+", metavar="FOLD")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    chosen = cases(arguments.fold, arguments.data)[arguments.first :: arguments.every]
    for case in chosen:
        line = json.dumps(row(case))
        print(line, flush=True)
        with _file(arguments.fold).open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
