"""Polar domains of made-up Sm:BiFeO3 images without labels: what the patches are compared by.

    python experiments/domains/run.py --seeds 100 101 102 103 104      one JSON line each
    python experiments/domains/run.py --seeds ... --dose 300           electrons per Å^2
    python experiments/domains/run.py --seeds ... --variants 8         <110> and <100>
    python experiments/domains/run.py --study --seeds ...              windows and steps
    python experiments/domains/run.py --table                          what results.jsonl says

Seeds 0 to 4 are for tuning, 100 to 104 for the table. Every way is told the number of variants, and
has the same patches and the same k-means.
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
import scipy.cluster.vq
import scipy.ndimage
import scipy.spatial

from micjax.physics.patches.features import displacements
from micjax.physics.patches.unmixing.agreement import adjusted_rand_index

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
from specimens import CELL_A, Ferroelectric, ferroelectric  # noqa: E402

SAMPLING_A = 0.3
CELL_PX = CELL_A / SAMPLING_A
WINDOW, STEP = 3.0, 0.5  # cells; chosen on seeds 0 to 4
WINDOWS, STEPS = (1.5, 2.0, 3.0, 4.0, 6.0), (0.5, 1.0, 2.0)
STARTS, COMPONENTS = 20, 10  # of k-means, of the principal components
STARTS_OF_PIXELS = 4  # of k-means of whole patches, which take long


def centres_px(size: int, window: float, step: float) -> np.ndarray:
    """Middles of patches along an axis, which begin and end at whole pixels."""
    width = round(window * CELL_PX)
    return np.arange(0, size - width + 1, max(1, round(step * CELL_PX))) + 0.5 * (width - 1)


def clusters(features: np.ndarray, count: int) -> np.ndarray:
    """The best of several starts of k-means."""
    flat = np.asarray(features, np.float32).reshape(-1, features.shape[-1])
    best, labels = np.inf, None
    for start in range(STARTS if flat.shape[1] <= 64 else STARTS_OF_PIXELS):
        means, label = scipy.cluster.vq.kmeans2(flat, count, iter=40, minit="++", rng=start)
        loss = float(np.sum((flat - means[label]) ** 2))
        if loss < best:
            best, labels = loss, label
    return labels.reshape(features.shape[:-1])


def cut(image: np.ndarray, centres: np.ndarray, window: float) -> np.ndarray:
    """Patches [n, n, pixels] around whole-pixel corners."""
    width = round(window * CELL_PX)
    corner = np.round(centres - 0.5 * (width - 1)).astype(int)
    every = np.lib.stride_tricks.sliding_window_view(image, (width, width))
    return every[np.ix_(corner, corner)].reshape(len(corner), len(corner), -1)


def components(patches: np.ndarray) -> np.ndarray:
    flat = patches.reshape(-1, patches.shape[-1])
    flat = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    return (flat @ vectors[:, -COMPONENTS:]).reshape(*patches.shape[:-1], -1)


def power(patches: np.ndarray) -> np.ndarray:
    """Amplitudes of the spectra, without the mean, under a Hann window."""
    width = round(patches.shape[-1] ** 0.5)
    hann = np.hanning(width + 2)[1:-1]
    images = patches.reshape(*patches.shape[:2], width, width)
    held = (images - images.mean((2, 3), keepdims=True)) * np.outer(hann, hann)
    amplitude = np.abs(np.fft.rfft2(held))
    return amplitude.reshape(*patches.shape[:2], -1)


def columns(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places [n, 2] of strong and of weak columns: maxima, then centroids around them."""
    smooth = scipy.ndimage.gaussian_filter(image, 0.4 / SAMPLING_A)
    level = scipy.ndimage.minimum_filter(smooth, round(CELL_PX))
    apart = round(0.45 * CELL_PX)
    peak = (scipy.ndimage.maximum_filter(smooth, apart) == smooth) & (smooth > level * 1.2)
    places = np.argwhere(peak)
    reach = round(0.2 * CELL_PX)
    places = places[np.all((places >= reach) & (places < len(image) - reach), axis=1)]
    offsets = np.arange(-reach, reach + 1)
    around = smooth[places[:, 0, None, None] + offsets[:, None], places[:, 1, None, None] + offsets]
    height = around.max((1, 2))
    weight = around - around.min((1, 2), keepdims=True)
    total = weight.sum((1, 2))
    centroid = places + np.stack(
        [(weight.sum(2) @ offsets) / total, (weight.sum(1) @ offsets) / total], axis=1
    )
    edge = scipy.cluster.vq.kmeans2(height, height[[height.argmin(), height.argmax()]])[0].mean()
    return centroid[height > edge], centroid[height <= edge]


def off_the_middle(strong: np.ndarray, weak: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and displacements (Å) of the weak columns that have four strong ones around."""
    distance, near = scipy.spatial.KDTree(strong).query(weak, k=4)
    whole = distance[:, 3] < 1.0 * CELL_PX
    middle = strong[near[whole]].mean(1)
    return middle, (weak[whole] - middle) * SAMPLING_A


def columnwise(places: np.ndarray, values: np.ndarray, centres: np.ndarray, window: float):
    """Means over the columns of each patch, weighted by a Hann window; the nearest if none is."""
    half = 0.5 * window * CELL_PX
    weight = [
        np.cos(0.5 * np.pi * np.clip((p - centres[:, None]) / half, -1.0, 1.0)) ** 2
        for p in places.T
    ]
    total = weight[0] @ weight[1].T
    mean = np.stack([(weight[0] * v) @ weight[1].T for v in values.T], -1)
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)
    _, nearest = scipy.spatial.KDTree(places).query(grid)
    held = total > 1e-3
    return np.where(held[..., None], mean / np.where(held, total, 1.0)[..., None], values[nearest])


def registered(image: np.ndarray, strong: np.ndarray, centres: np.ndarray, window: float):
    """Patches around the strong column next to each centre, interpolated to it."""
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)
    _, nearest = scipy.spatial.KDTree(strong).query(grid)
    width = round(window * CELL_PX)
    offsets = np.arange(width) - 0.5 * (width - 1)
    used, where = np.unique(nearest, return_inverse=True)
    rows = strong[used, 0, None, None] + offsets[:, None] + np.zeros(width)
    cols = strong[used, 1, None, None] + offsets + np.zeros((width, 1))
    patches = scipy.ndimage.map_coordinates(image, [rows, cols], order=1, mode="reflect")
    return patches.reshape(len(used), -1)[where.reshape(nearest.shape)]


def polar(image: np.ndarray, centres: np.ndarray, window: float) -> np.ndarray:
    """Displacements [n, n, 2] in Å."""
    reciprocal = displacements.reciprocal_lattice(image, SAMPLING_A, CELL_A)

    @jax.jit
    def solved(field, places):
        local = displacements.reflections(
            field, reciprocal, SAMPLING_A, (places, places), window * CELL_PX
        )
        column = displacements.columns(local, reciprocal)
        return displacements.displacements(local, reciprocal, column).shift_A

    return np.asarray(solved(jnp.asarray(image), jnp.asarray(centres, image.dtype)))


def over_pixels(labels: np.ndarray, centres: np.ndarray, size: int) -> np.ndarray:
    """The label of the nearest patch."""
    nearest = np.abs(np.arange(size)[:, None] - centres).argmin(1)
    return labels[np.ix_(nearest, nearest)]


def shift_error_A(crystal: Ferroelectric, shift: np.ndarray, centres: np.ndarray) -> float:
    at = np.round(centres).astype(int)
    return float(np.sqrt(np.mean((shift - crystal.shift_A[np.ix_(at, at)]) ** 2)))


def ways(
    image: np.ndarray, centres: np.ndarray, window: float, pixels: bool
) -> dict[str, np.ndarray]:
    """Features of the patches; those of their pixels take long."""
    strong, weak = columns(image)
    middle, shift = off_the_middle(strong, weak)
    every = {
        "columns": columnwise(middle, shift, centres, window),
        "displacements": polar(image, centres, window),
    }
    if pixels:
        patches = cut(image, centres, window)
        every["raw"], every["pca"], every["power"] = patches, components(patches), power(patches)
        every["registered"] = registered(image, strong, centres, window)
    return every


def repeat(seed: int, window: float, step: float, pixels: bool, **made) -> dict:
    crystal = ferroelectric(seed, sampling_A=SAMPLING_A, **made)
    image = crystal.image.astype(np.float32)
    centres = centres_px(len(image), window, step)
    count = len(np.unique(crystal.domain))
    row = {"seed": seed, "window_cells": window, "step_cells": step, **made}
    began = time.process_time()
    for name, features in ways(image, centres, window, pixels).items():
        labels = over_pixels(clusters(features, count), centres, len(image))
        row[name] = adjusted_rand_index(labels, crystal.domain)
        if name in ("columns", "displacements"):
            row[f"{name}_rms_A"] = shift_error_A(crystal, features, centres)
    row["nothing"] = adjusted_rand_index(np.zeros_like(crystal.domain), crystal.domain)
    row["cpu_seconds"] = time.process_time() - began
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()}


def table(path: pathlib.Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    cases: dict[tuple, list] = {}
    for row in rows:
        if row["seed"] >= 100:
            keys = ("variants", "dose_perA2", "shift_A", "window_cells", "step_cells")
            cases.setdefault(tuple(row[k] for k in keys), []).append(row)
    for (variants, dose, shift, window, step), of in sorted(cases.items()):
        print(
            f"{variants} variants, {dose:g} electrons per Å^2, {shift:g} Å, window {window:g}, "
            f"step {step:g} cells: {len(of)} images"
        )
        for name in (
            "nothing raw pca power registered columns displacements columns_rms_A "
            "displacements_rms_A cpu_seconds"
        ).split():
            values = [row[name] for row in of if name in row]
            if values:
                print(
                    f"  {name:20s} {np.mean(values):7.3f}  [{min(values):.3f} to {max(values):.3f}]"
                )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    arguments.add_argument("--variants", type=int, default=4, choices=[4, 8])
    arguments.add_argument("--dose", type=float, default=3000.0)
    arguments.add_argument("--shift", type=float, default=0.3)
    arguments.add_argument("--study", action="store_true")
    arguments.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    arguments.add_argument("--table", action="store_true")
    given = arguments.parse_args()
    if given.table:
        table(given.out)
        sys.exit()
    settings = [(WINDOW, STEP)]
    if given.study:
        settings = [(w, STEP) for w in WINDOWS if w != WINDOW]
        settings += [(WINDOW, s) for s in STEPS if s != STEP]
    made = {"variants": given.variants, "dose_perA2": given.dose, "shift_A": given.shift}
    for seed in given.seeds:
        for window, step in settings:
            line = json.dumps(repeat(seed, window, step, not given.study, **made))
            print(line, flush=True)
            with given.out.open("a") as file:
                file.write(line + "\n")
