"""The network on the 20 cases of `experiments/tip_removal`: three real surfaces and a rough one.

    python experiments/tip_removal_net/cases.py --data FOLDER --to CASES
    python experiments/tip_removal_net/real.py --cases CASES [--net FILE]

Prints one JSON line a case; the last one has the means. PSNR (dB) as there: 20 pixels from the
border, after the best shift by whole pixels and without the mean height.
"""

import argparse
import json
import pathlib
import runpy

import jax.numpy as jnp
import numpy as np

from micjax.physics.tips.dilation import erode
from micjax.problems.tip import aligned_error
from micjax.problems.tip.fill import network_of, surface_of
from micjax.problems.tip.network import BOUND_SIGMAS

BEFORE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "tip_removal" / "run.py"))
MARGIN, best_shift = BEFORE["MARGIN"], BEFORE["best_shift"]


def psnr(estimate, truth) -> float:
    error = aligned_error(np.asarray(estimate)[None], truth[None], MARGIN)
    return float(10 * np.log10(np.ptp(truth) ** 2 / np.mean(error**2)))


def inside(surface, half, truth) -> float:
    """How often the intervals hold the truth, at the shift and the height that fit best."""
    dy, dx = best_shift(surface, truth)
    within = (slice(MARGIN, -MARGIN),) * 2
    moved, widths = (np.roll(a, (-dy, -dx), (0, 1))[within] for a in (surface, half))
    error = moved - truth[within]
    return float(np.mean(np.abs(error - error.mean()) <= widths))


def case(path: pathlib.Path, network) -> dict:
    with np.load(path) as file:
        data = {n: file[n] for n in file.files}
    y, truth, sigma = jnp.asarray(data["y"]), data["truth"], jnp.asarray(data["sigma"], np.float32)
    row = {"case": path.stem, "scan": psnr(data["y"], truth)}
    row["villarrubia"] = psnr(data["classical"], truth)
    row["micjax, curvature"] = psnr(data["surface"], truth)
    above = 0
    for name in ("blind_tip", "tip"):
        tip = jnp.asarray(data[name], y.dtype)
        surface, half = surface_of(network, y, tip, sigma)
        eroded = np.asarray(erode(y, tip))
        row[f"erosion, {name}"] = psnr(eroded, truth)
        row[f"network, {name}"] = psnr(surface, truth)
        row[f"inside, {name}"] = inside(surface, half, truth)
        row[f"half width over the rms error, {name}"] = float(
            half.mean() / np.sqrt(np.mean(aligned_error(surface[None], truth[None], MARGIN) ** 2))
        )
        above += int((surface > eroded + 1.0001 * BOUND_SIGMAS * float(sigma)).sum())
    return row | {"above the bound": above}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=pathlib.Path, required=True)
    parser.add_argument("--net", help="weights other than those of micjax")
    given = parser.parse_args()
    network, rows = network_of(given.net), []
    for path in sorted(given.cases.glob("*.npz")):
        rows.append(case(path, network))
        print(
            json.dumps({n: v if isinstance(v, str) else round(v, 3) for n, v in rows[-1].items()})
        )
    numbers = [n for n in rows[0] if n != "case"]
    print(
        json.dumps({"mean": {n: round(float(np.mean([r[n] for r in rows])), 3) for n in numbers}})
    )


if __name__ == "__main__":
    main()
