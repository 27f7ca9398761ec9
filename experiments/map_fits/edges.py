"""Copper and zinc edges of a measured map, beside exspy: what is left, and how long it takes.

    python experiments/map_fits/edges.py CuZn_map.hspy --peers PYTHON    # one JSON line a row

PYTHON is an interpreter with exspy. chi^2 is that of whole numbers with the gain of the detector,
its variance read off the data: the mean of seven channels. Times are those of one core, of the fits
alone, without compilation.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import jax
import numpy as np

from micjax import fit_map
from micjax.inference.maps.each import one_pixel
from micjax.problems import eels
from micjax.problems.eels.stages import starts
from micjax.problems.shared.spectrum_images import gain_of

STRIDE = 5  # of the pixels that are compared
OURS = {"micjax": {"fine_structure": 0}, "micjax, fine structure": {}}


def variance_of(y: np.ndarray) -> np.ndarray:
    wide = np.pad(y, [(0, 0), (0, 0), (3, 3)], mode="edge")
    mean = np.mean([wide[..., i : i + y.shape[-1]] for i in range(7)], axis=0)
    return gain_of(y) * np.maximum(mean, 1.0)


def ours(file: str, **options):
    """What is left, seconds a pixel, copper over copper and zinc."""
    setting, x, y = eels.load(file, edges=["Cu_L", "Zn_L"], **options)
    pixel, _ = one_pixel(eels.problem(**setting))
    y = np.asarray(y)
    given = starts(pixel, np.asarray(x), y)
    for _ in range(2):  # the first compiles
        began = time.process_time()
        fit = fit_map(pixel, x, y, starts=given, steps=200)
        seconds = (time.process_time() - began) / fit.status.size
    predict = jax.jit(jax.vmap(jax.vmap(lambda v: pixel.at(v).forward(x))))
    copper, zinc = (fit.values[f"forward.edges.{n}.amount"] for n in ("Cu_L", "Zn_L"))
    return y - np.asarray(predict(fit.values)), seconds, copper / (copper + zinc), y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--peers")
    asked = parser.parse_args()
    rows = {name: ours(asked.file, **options) for name, options in OURS.items()}
    some = np.s_[::STRIDE, ::STRIDE]
    variance = variance_of(rows["micjax"][3])[some]
    rows = {n: (left[some], seconds, share[some]) for n, (left, seconds, share, _) in rows.items()}
    if asked.peers:
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "peers.npz"
            script = pathlib.Path(__file__).parent / "edges_peer.py"
            subprocess.run([asked.peers, str(script), asked.file, str(out)], check=True)
            with np.load(out) as peers:
                for name in dict.fromkeys(n.partition(":")[0] for n in peers):
                    rows[f"exspy, {name}"] = tuple(
                        peers[f"{name}: {what}"] for what in ("left", "seconds", "share")
                    )
    chi2 = {n: np.mean(left**2 / variance, axis=-1) for n, (left, *_) in rows.items()}
    for name, (_, seconds, share) in rows.items():
        row = {
            "model": name,
            "pixels": int(chi2[name].size),
            "chi^2 per channel": round(float(np.median(chi2[name])), 3),
            "seconds a pixel": float(f"{float(seconds):.3g}"),
            "Cu over Cu and Zn": round(float(np.median(share)), 3),
        }
        if name.startswith("exspy"):
            for n in OURS:
                better = np.mean(chi2[n] <= chi2[name])
                row[f"{n}: no worse in"] = round(float(better), 3)
                row[f"{n}: times faster"] = round(float(seconds) / rows[n][1])
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
