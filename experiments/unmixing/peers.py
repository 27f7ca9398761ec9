"""How other programs take the same spectrum images apart. Runs without micjax.

    python experiments/unmixing/peers.py                the peers' interpreter; appends to results

The interpreter has NumPy, SciPy and scikit-learn; without the latter nothing is run. Each is told
the number of end members.
"""

import argparse
import json
import os
import pathlib
import time
import warnings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scores import compared
from specimens import SETS, specimen

FILE = pathlib.Path(__file__).parent / "results.jsonl"


def nmf(x, count: int, **options):
    from sklearn.decomposition import NMF

    model = NMF(count, init="nndsvda", random_state=0, max_iter=1000, **options)
    w = model.fit_transform(x)
    size = model.components_.sum(axis=1)
    return w * size, model.components_ / np.maximum(size, 1e-30)[:, None]


def least_squares(x, count: int):
    """Coordinate descent, tolerance 1e-5."""
    return nmf(x, count, tol=1e-5)


def kullback_leibler(x, count: int):
    """Multiplicative steps for Poisson's law, pixel by pixel."""
    return nmf(x, count, solver="mu", beta_loss="kullback-leibler", tol=1e-5)


def weighted_components(x, count: int):
    """Principal components of counts over the roots of the products of their sums over pixels and
    channels (Keenan & Kotula 2004), which hyperspy's `normalize_poissonian_noise` does; the
    data of the first few of them, zeros for what is below, are factorised by least squares."""
    rows, columns = (np.sqrt(np.maximum(x.mean(axis=a), 1e-12)) for a in (1, 0))
    left, size, right = np.linalg.svd(x / rows[:, None] / columns, full_matrices=False)
    kept = (left[:, :count] * size[:count]) @ right[:count]
    return nmf(np.maximum(kept * rows[:, None] * columns, 0.0), count, tol=1e-5)


PEERS = {
    "least squares (scikit-learn)": least_squares,
    "Kullback-Leibler (scikit-learn)": kullback_leibler,
    "weighted components, least squares": weighted_components,
}


def repeat(peer: str, name: str, seed: int) -> dict:
    image = specimen(name, seed)
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that were not enough
        factors = PEERS[peer](image.counts, len(image.spectrum))
    seconds = time.process_time() - began
    scores = compared(image, *factors)[0]
    row = {"program": peer, "set": name, "seed": seed, **scores, "cpu_seconds": round(seconds, 1)}
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    arguments.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 120)))
    arguments.add_argument("--out", type=pathlib.Path, default=FILE)
    given = arguments.parse_args()
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"left out: {error}") from error
    for peer in PEERS:
        for name in given.sets:
            for seed in given.seeds:
                line = json.dumps(repeat(peer, name, seed))
                print(line, flush=True)
                with given.out.open("a") as file:
                    file.write(line + "\n")
