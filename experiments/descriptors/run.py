"""Textures told apart by few descriptors of their patches, from twenty labels.

    python experiments/descriptors/run.py --set metal --seeds 100 101 102 103 104   JSON lines
    python experiments/descriptors/run.py --set scan
    python experiments/descriptors/run.py --table                   what results.jsonl says

Seeds 0 to 4 are for tuning, 100 to 104 for the table. Labels are of patches of some images, the
accuracy is that on patches of others.
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

from micjax.active.gp import process as gp
from micjax.active.gp.evidence import fit_evidence
from micjax.physics.patches.features.descriptors import Descriptors

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
from textures import PATCH, PIXEL_A, SETS, image_of, patches_of  # noqa: E402

LABELS, FEW, COMPONENTS = 20, 5, 10
IMAGES = 3  # of each class, for the labels and again for the test
EDGES = (1.5, 3.0, 5.0, 7.0, 10.0, 14.0, 22.0)  # of the rings, in cycles a patch


def descriptors_of(name: str) -> Descriptors:
    edge_A = PATCH * PIXEL_A[name]
    return Descriptors(PIXEL_A[name], tuple(k / edge_A for k in EDGES))


def data(name: str, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches, the class of each, and whether it is of an image for the test."""
    rng = np.random.default_rng(seed)
    patches, labels, held = [], [], []
    for k, texture in enumerate(SETS[name]):
        for i in range(2 * IMAGES):
            of = patches_of(image_of(rng, name, texture, noise))
            patches.append(of)
            labels.append(np.full(len(of), k))
            held.append(np.full(len(of), i >= IMAGES))
    return np.concatenate(patches), np.concatenate(labels), np.concatenate(held)


def chosen(labels: np.ndarray, held: np.ndarray, seed: int) -> np.ndarray:
    """Which patches have labels: of each class as many as of the others, or one more."""
    rng, count = np.random.default_rng(seed + 10_000), labels.max() + 1
    numbers = LABELS // count + (np.arange(count) < LABELS % count)
    return np.concatenate(
        [
            rng.choice(np.flatnonzero((labels == k) & ~held), n, replace=False)
            for k, n in enumerate(numbers)
        ]
    )


# --- ways to tell classes apart -------------------------------------------------------------------


def one_against_the_rest(points: np.ndarray, labels: np.ndarray) -> list:
    """The fit of a Gaussian process for each class: 1 where it is, else -1."""
    box = np.tile([[-3.0], [3.0]], points.shape[1])
    process = gp.process(*box)
    return [
        (fit_evidence(process, *(known := gp.buffered(points, 2.0 * (labels == k) - 1.0))), known)
        for k in range(labels.max() + 1)
    ]


def told_by_process(points: np.ndarray, labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    return told_by(one_against_the_rest(points, labels), other)


def told_by(fits: list, other: np.ndarray) -> np.ndarray:
    means = [gp.predict(gp.condition(fit.problem, *known), other)[0] for fit, known in fits]
    return np.argmax(means, axis=0)


def told_by_centroid(points: np.ndarray, labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    means = np.stack([points[labels == k].mean(0) for k in range(labels.max() + 1)])
    return ((other[:, None] - means) ** 2).sum(-1).argmin(1)


def told_by_discriminant(points: np.ndarray, labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The nearest centroid in units of the spread within classes, shrunk by 0.3 to a sphere."""
    means = np.stack([points[labels == k].mean(0) for k in range(labels.max() + 1)])
    within = (points - means[labels]).T @ (points - means[labels]) / len(points)
    axes = len(within)
    within = 0.7 * within + 0.3 * np.trace(within) / axes * np.eye(axes)
    whiten = np.linalg.cholesky(np.linalg.inv(within))
    return told_by_centroid(points @ whiten, labels, other @ whiten)


def by_relevance(fits: list) -> np.ndarray:
    """Descriptors from the most relevant on: 1 / lengthscale^2, added up over the classes."""
    relevance = sum(
        np.asarray(fit.problem.values()["forward.kernel.lengthscale"]) ** -2.0 for fit, _ in fits
    )
    return np.argsort(-relevance)


def by_information(points: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The descriptors that say most of the class together: one after the other, greedily.

    The information of normal distributions, I = (log |S| - log |W|) / 2 with the covariances S of
    all and W within the classes, both shrunk by a fifth towards the identity.
    """
    within = points - np.stack([points[labels == k].mean(0) for k in labels])
    total = points - points.mean(0)
    covariances = [0.8 * v.T @ v / len(v) + 0.2 * np.eye(v.shape[1]) for v in (total, within)]
    kept: list[int] = []
    for _ in range(count):
        gains = np.full(points.shape[1], -np.inf)
        for j in set(range(points.shape[1])) - set(kept):
            of = np.ix_(*2 * [[*kept, j]])
            gains[j] = np.linalg.slogdet(covariances[0][of])[1]
            gains[j] -= np.linalg.slogdet(covariances[1][of])[1]
        kept.append(int(gains.argmax()))
    return np.array(kept)


# --- ways to describe a patch ---------------------------------------------------------------------


def principal(patches: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Scores of raw pixels, each patch of mean 0 and variance 1."""
    flat = patches.reshape(len(patches), -1)
    flat = flat - flat.mean(1, keepdims=True)
    flat = flat / flat.std(1, keepdims=True)
    mean = flat[~held].mean(0)
    _, _, vectors = np.linalg.svd(flat[~held] - mean, full_matrices=False)
    return (flat - mean) @ vectors[:COMPONENTS].T


def binary_patterns(patches: np.ndarray) -> np.ndarray | None:
    """Histograms of local binary patterns (Ojala et al. 2002) at 1, 2 and 4 pixels."""
    try:
        from skimage.feature import local_binary_pattern
    except ImportError:
        return None
    low, high = patches.min((1, 2), keepdims=True), patches.max((1, 2), keepdims=True)
    grey = np.round(65535 * (patches - low) / (high - low)).astype(np.uint16)
    return np.array(
        [
            np.concatenate(
                [
                    np.bincount(
                        local_binary_pattern(p, 8, r, "uniform").astype(int).ravel(), minlength=10
                    )
                    for r in (1, 2, 4)
                ]
            )
            / p.size
            for p in grey
        ]
    )


def repeat(name: str, seed: int, noise: float) -> dict:
    patches, labels, held = data(name, seed, noise)
    known = chosen(labels, held, seed)
    describe = descriptors_of(name)
    began = time.process_time()
    values = np.asarray(jax.jit(describe)(jnp.asarray(patches, jnp.float32)), np.float64)
    row = {"set": name, "seed": seed, "noise": noise, "describe_cpu_s": time.process_time() - began}

    def scaled(features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        of = features[known]
        sd = of.std(0)
        unit = (features - of.mean(0)) / np.where(sd > 0.0, sd, 1.0)
        unit = np.clip(unit, -6.0, 6.0)  # far from all labels is far enough
        return unit[known], labels[known], unit[held]

    def accuracy(tell, features) -> float:
        return float(np.mean(tell(*scaled(features)) == labels[held]))

    points, of, other = scaled(values)
    fits = one_against_the_rest(points, of)
    relevant = by_relevance(fits)[:FEW]
    informed = by_information(points, of, FEW)
    row["majority"] = float(np.bincount(labels[held]).max() / held.sum())
    pixels, patterns = principal(patches, held), binary_patterns(patches)
    features = {
        "pca": pixels,
        "patterns": patterns,
        "all": values,
        "ard": values[:, relevant],
        "information": values[:, informed],
    }
    rules = {
        "centroid": told_by_centroid,
        "discriminant": told_by_discriminant,
        "process": told_by_process,
    }
    ways = {
        f"{n}_{rule}": (tell, v)
        for n, v in features.items()
        for rule, tell in rules.items()
        if v is not None and (rule != "process" or n in ("ard", "information"))
    }
    ways["all_process"] = lambda *_: told_by(fits, other), values
    row |= {n: accuracy(*way) for n, way in ways.items()}
    row["ard"] = [describe.names[i] for i in relevant]
    row["information"] = [describe.names[i] for i in informed]
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()}


def table(path: pathlib.Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for name, noise in sorted({(r["set"], r["noise"]) for r in rows if r["seed"] >= 100}):
        of = [r for r in rows if (r["set"], r["noise"]) == (name, noise) and r["seed"] >= 100]
        print(f"{name}, noise {noise:g}: {len(of)} seeds")
        for key in (n for n, v in of[0].items() if isinstance(v, float) and n != "noise"):
            values = [r[key] for r in of]
            print(f"  {key:22s} {np.mean(values):7.3f}  [{min(values):.3f} to {max(values):.3f}]")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--set", default="metal", choices=list(SETS))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    arguments.add_argument("--noise", type=float, default=0.5)
    arguments.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    arguments.add_argument("--table", action="store_true")
    given = arguments.parse_args()
    if given.table:
        table(given.out)
        sys.exit()
    for seed in given.seeds:
        line = json.dumps(repeat(given.set, seed, given.noise))
        print(line, flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")
