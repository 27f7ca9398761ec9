"""The images of the table as .npz files, for programs that run without micjax (peers.py).

    python experiments/phase_map/images.py --to FOLDER --sets A B C --seeds 100 101 102 103 104
    python experiments/phase_map/images.py --to FOLDER --sets B --dose 3

Each holds the image, the true phase of each pixel (`count` where there is no crystal), the number
of phases, and the middles of the patches at which run.py compares labels.
"""

import argparse
import json
import pathlib

import numpy as np
from specimens import SETS, SHAPE, specimen

RESULTS = pathlib.Path(__file__).parent / "results.jsonl"
WINDOW_PX = 64  # where micjax has not looked at an image yet


def window_px(name: str, seed: int, dose: float) -> int:
    """What micjax chose for this image."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    asked = name, seed, dose
    of = [r for r in rows if (r["set"], r["seed"], r["electrons_per_px"]) == asked]
    return of[-1]["window_px"] if of else WINDOW_PX


def middles(window: int) -> np.ndarray:
    """Of the patches along an axis, as run.py rounds them."""
    corners = np.arange(0, SHAPE[0] - window + 1, window // 8)
    return np.round(corners + 0.5 * (window - 1)).astype(int)


def write(folder: pathlib.Path, name: str, seed: int, dose: float) -> None:
    crystal = specimen(name, seed, dose)
    np.savez_compressed(
        folder / f"{name}_{seed}_{dose:g}.npz",
        image=crystal.image.astype(np.float32),
        phase=crystal.phase.astype(np.int8),
        count=len(set(crystal.phase_of_grain.tolist())),
        middles=middles(window_px(name, seed, dose)),
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--to", type=pathlib.Path, required=True)
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    arguments.add_argument("--dose", type=float, default=60.0)
    given = arguments.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        for seed in given.seeds:
            write(given.to, name, seed, given.dose)
