"""Spectrum images taken apart: spectra, shares and their errors against the truth.

    python experiments/unmixing/run.py                        sets and seeds of the table
    python experiments/unmixing/run.py --sets buried --seeds 0 1 2
    python experiments/unmixing/run.py --known --sets buried  the matrix is known
    python experiments/unmixing/run.py --plain                sums of neighbours, factorised
    python experiments/unmixing/peers.py                      other programs on the same images
    python experiments/unmixing/run.py --table                what results.jsonl says

Seeds 0 to 4 and from 900 on are for tuning, 100 to 119 for the table. Whether the number of end
members is right is asked blind; where it is wrong the rest is of another run that is told it.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

import micjax
from micjax.physics.patches.unmixing.laws import Counts, blocks
from micjax.problems import unmixing

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
from scores import compared, mean_spectrum  # noqa: E402
from specimens import SETS, SHAPE, SpectrumImage, specimen  # noqa: E402

UNITS = {"xray": "keV", "buried": "keV", "loss": "eV", "rings": "1/Å"}
PRESENT = 0.02  # share above which a pixel shows an end member
Z = 1.645  # 90 % of a normal distribution


def solved(name: str, image: SpectrumImage, seed: int, components: int, known=None):
    problem = unmixing.problem(
        *SHAPE,
        image.counts.shape[1],
        components,
        level=float(image.counts.mean()),
        signal_start=float(image.signal[0]),
        signal_step=float(np.diff(image.signal).mean()),
        signal_unit=UNITS[name],
        known=known,
    )
    x = jnp.arange(len(image.counts))
    key = jax.random.key(seed)
    return micjax.solve(unmixing, problem, x, jnp.asarray(image.counts), key=key)


def coverage(image: SpectrumImage, solution, order) -> dict[str, float]:
    """Share of the 90 % intervals that hold the truth: of abundances where a pixel shows the end
    member (and others too: mixed), of all of them, of channels."""
    w, h = (solution.results[n] for n in ("abundance", "spectrum"))
    true = image.abundance.T.reshape(-1, *SHAPE)
    share = true / true.sum(axis=0)
    held = np.abs(w.data[order] - true) <= Z * w.metadata["errors"][order]
    there = share > PRESENT
    channel = np.abs(h.data[order] - image.spectrum) <= Z * h.metadata["errors"][order]
    return {
        "abundances_hold": float(held[there].mean()),
        "mixed_abundances_hold": float(held[there & (share < 1.0 - PRESENT)].mean()),
        "all_abundances_hold": float(held.mean()),
        "channels_hold": float(channel.mean()),
    }


def repeat(name: str, seed: int, known: bool) -> dict:
    image = specimen(name, seed)
    count, told = len(image.spectrum), None
    began = time.process_time()
    if known:
        with tempfile.TemporaryDirectory() as folder:
            told = pathlib.Path(folder) / "matrix.npy"
            np.save(told, image.spectrum[:1])
            solution = solved(name, image, seed, 0, str(told))
            ours = len(solution.results["spectrum"].data)
            if ours != count:
                solution = solved(name, image, seed, count, str(told))
    else:
        solution = solved(name, image, seed, 0)
        ours = len(solution.results["spectrum"].data)
        if ours != count:
            solution = solved(name, image, seed, count)
    seconds = time.process_time() - began
    w = solution.results["abundance"].data.reshape(count, -1).T
    scores, order = compared(image, w, solution.results["spectrum"].data)
    nothing, _ = compared(image, *mean_spectrum(image, count))
    row = {
        "program": "micjax, matrix known" if known else "micjax",
        "set": name,
        "seed": seed,
        "number": [ours, count],
        "substances": list(image.substances),
        **scores,
        **coverage(image, solution, order),
        "cpu_seconds": round(seconds, 1),
        **{f"nothing_{n}": v for n, v in nothing.items()},
    }
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()}


def plain(name: str, seed: int) -> dict:
    """The plane in which corners are sought, as the factorisation of sums of neighbours leaves it;
    told the number of end members."""
    image = specimen(name, seed)
    began = time.process_time()
    factors = Counts(image.counts, blocks(SHAPE)).factors(len(image.spectrum))
    seconds = time.process_time() - began
    scores = compared(image, *factors)[0]
    row = {"program": "sums factorised", "set": name, "seed": seed, **scores}
    row["cpu_seconds"] = seconds
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()}


def table(path: pathlib.Path) -> None:
    """Means of the seeds from 100 on, and the worst and the best of them."""
    rows = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if 100 <= row["seed"] < 900:
            rows[row["program"], row["set"], row["seed"]] = row
    for program, name in dict.fromkeys(k[:2] for k in rows):
        of = [r for k, r in rows.items() if k[:2] == (program, name)]
        right = [r["number"][0] == r["number"][1] for r in of if "number" in r]
        number = f", number right in {sum(right)}" if right else ""
        print(f"{program}: {name}, {len(of)} images{number}")
        for key in of[0]:
            values = [r[key] for r in of]
            if isinstance(values[0], float):
                sd = np.std(values) / np.sqrt(len(values))
                print(
                    f"  {key:24s} {np.mean(values):8.4f} +- {sd:.4f}"
                    f"  [{min(values):.4f} to {max(values):.4f}]"
                )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    arguments.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 120)))
    arguments.add_argument("--known", action="store_true", help="the first substance is known")
    arguments.add_argument("--plain", action="store_true", help="no corners are sought")
    arguments.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    arguments.add_argument("--table", action="store_true")
    given = arguments.parse_args()
    if given.table:
        table(given.out)
        sys.exit()
    for seed in given.seeds:
        for name in given.sets:
            row = plain(name, seed) if given.plain else repeat(name, seed, given.known)
            line = json.dumps(row)
            print(line, flush=True)
            with given.out.open("a") as file:
                file.write(line + "\n")
