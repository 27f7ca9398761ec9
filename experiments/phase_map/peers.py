"""How other programs map the phases of the same images. Runs without micjax.

    python experiments/phase_map/images.py --to FOLDER      micjax's interpreter: the images
    python experiments/phase_map/peers.py --images FOLDER   the peers' interpreter; appends a line
    python experiments/phase_map/peers.py --table           what peers.jsonl says

The peers' interpreter has NumPy, SciPy and scikit-learn; AtomAI and hyperspy as well, or these rows
are left out. Each peer is told the number of phases and nothing of the pixel size. Its label at the
middle of a patch of run.py is that of its own patch nearest to it, and adjusted Rand indices are
of all middles in a crystal (`index`), and of all, where no crystal is a class (`index_all`).
"""

import argparse
import contextlib
import importlib
import io
import json
import math
import os
import pathlib
import tempfile
import time
import warnings
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.spatial
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

FILE = pathlib.Path(__file__).parent / "peers.jsonl"
CASES = (("A", 60.0), ("B", 60.0), ("B", 3.0), ("C", 60.0))
POPULATION = 20  # looks that the paper's program takes before it stops


class Found(NamedTuple):
    middles: np.ndarray  # [n, 2], (y, x) in pixels
    labels: np.ndarray  # [n]
    note: str


class Patches(NamedTuple):
    middles: np.ndarray  # [n, 2]
    pixels: np.ndarray  # [n, h, w]
    grid: tuple[int, int]


def patches(image, height: int, width: int, step: int) -> Patches:
    cut = np.lib.stride_tricks.sliding_window_view(image, (height, width))[::step, ::step]
    grid = cut.shape[:2]
    middles = np.indices(grid).reshape(2, -1).T * step
    middles = middles + 0.5 * (np.array([height, width]) - 1)
    return Patches(middles, cut.reshape(-1, height, width), grid)


def hann(height: int, width: int) -> np.ndarray:
    return np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width)))


def windowed(pixels) -> np.ndarray:
    """Without the mean of each patch, which a Hann window then weighs."""
    window = hann(*pixels.shape[1:]).astype(pixels.dtype)
    mean = (pixels * window).sum((1, 2), keepdims=True) / window.sum()
    return (pixels - mean) * window


def most(abundance, parts) -> np.ndarray:
    """The component that adds most to each patch."""
    return (abundance * np.linalg.norm(parts, axis=1)).argmax(1)


# --- the paper's pipeline --------------------------------------------------------------------


def paper(image, count: int, seed: int, mended: bool = False, look_step: int = 16, step: int = 8):
    """Amplitudes of patches, factorised; the first 20 looks are all that its search takes.

    As coded: no mean is taken off, no window, and the rewards are minimised. It steps by 2 pixels;
    here the looks step by 16 and the map by 8, to keep the time. Of the looks, which have two
    rewards, the one of the lowest (mended: highest) sum is taken.
    """
    rng = np.random.default_rng([seed, 20])
    sizes = rng.integers(4, 61, (POPULATION, 2))
    kept = rng.uniform(1.0, 99.0, POPULATION)
    sums = [
        sum(rewards(*split(image, *s, look_step, count, mended)[:2], keep))
        for s, keep in zip(sizes, kept, strict=True)
    ]
    best = int(np.argmax(sums) if mended else np.argmin(sums))
    abundance, grid, parts, middles = split(image, *sizes[best], step, count, mended)
    note = f"window {sizes[best][0]} x {sizes[best][1]}, keeps {kept[best]:.0f} %"
    return Found(middles, most(abundance, parts), note)


def split(image, height, width, step, count, mended):
    """Abundances, the grid of the patches, components and middles."""
    of = patches(image, height, width, step)
    if not mended:
        # corners taken for middles: patches that leave the image are dropped
        size = np.array([height, width])
        inside = np.all(of.middles + 0.5 * (size + 1) <= np.array(image.shape) - size // 2, axis=1)
        rows, columns = (len(np.unique(of.middles[inside, i])) for i in (0, 1))
        of = Patches(of.middles[inside], of.pixels[inside], (rows, columns))
    pixels = windowed(of.pixels) if mended else of.pixels
    spectra = np.abs(np.fft.fft2(pixels)).reshape(len(pixels), -1).astype(np.float32)
    model = NMF(count, init="random", random_state=42, max_iter=300)
    return model.fit_transform(spectra), of.grid, model.components_, of.middles


def rewards(abundance, grid, keep: float) -> tuple[float, float]:
    """Few connected regions of each component, and components that are unlike each other."""
    sparse = np.where(abundance >= np.percentile(abundance, 100.0 - keep), abundance, 0.0)
    maps = sparse.T.reshape(-1, *grid)
    compact = np.mean([1.0 / max(scipy.ndimage.label(m > 0.01)[1], 1) for m in maps])
    unit = sparse / np.maximum(np.linalg.norm(sparse, axis=0), 1e-12)
    alike = unit.T @ unit
    return float(compact), float(1.0 - alike[~np.eye(len(alike), dtype=bool)].max())


def paper_mended(image, count: int, seed: int, **settings) -> Found:
    return paper(image, count, seed, mended=True, **settings)


# --- AtomAI ----------------------------------------------------------------------------------


def atomai_fft(image, count: int, seed: int) -> Found:
    """SlidingFFTNMF with its defaults: window and step from the image."""
    from atomai.stat import SlidingFFTNMF

    model = SlidingFFTNMF(components=count)
    with tempfile.TemporaryDirectory() as folder:
        parts, abundance = model.analyze_image(image, str(pathlib.Path(folder) / "out"))
    middles = model.pos_vec + 0.5 * (np.array([model.window_size_x, model.window_size_y]) - 1)
    labels = most(abundance.reshape(count, -1).T, parts.reshape(count, -1))
    return Found(middles, labels, f"window {model.window_size_x}, step {model.window_step_x}")


def atomai_rvae(
    image, count: int, seed: int, size: int = 24, cycles: int = 4, columns: bool = True
) -> Found:
    """rVAE of patches around columns of atoms (or on a grid); a Gaussian mixture of its latents.

    Two pixels by two are one, and Adam's rate is 1e-3 (AtomAI's is 1e-4): that saves time.
    """
    import torch
    from atomai.models import rVAE

    torch.set_num_threads(1)
    middles, pixels = around_columns(image, size) if columns else patches(image, size, size, 8)[:2]
    pixels = pixels.reshape(len(pixels), size // 2, 2, size // 2, 2).mean((2, 4))
    pixels = ((pixels - pixels.min()) / (pixels.max() - pixels.min())).astype(np.float32)
    model = rVAE(pixels.shape[1:], latent_dim=2, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        model.fit(
            pixels,
            training_cycles=cycles,
            optimizer=lambda p: torch.optim.Adam(p, lr=1e-3),
            rotation_prior=np.pi / 2,
            filename=str(pathlib.Path(folder) / "model"),
        )
    latent = model.encode(pixels)[0][:, 3:]  # after the angle and two shifts
    mixture = GaussianMixture(count, n_init=5, random_state=seed)
    where = "columns" if columns else "a grid"
    note = f"{len(pixels)} patches of {size} pixels around {where}, {cycles} cycles"
    return Found(middles, mixture.fit_predict(latent), note)


def around_columns(image, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles and patches of the maxima of the smoothed image."""
    smooth = scipy.ndimage.gaussian_filter(image.astype(float), 1.5)
    highest = (scipy.ndimage.maximum_filter(smooth, 5) == smooth) & (smooth > smooth.mean())
    place = np.argwhere(highest)
    half = size // 2
    place = place[np.all((place >= half) & (place <= np.array(image.shape) - half), axis=1)]
    return place - 0.5, np.stack(
        [image[y - half : y + half, x - half : x + half] for y, x in place]
    )


# --- Zernike moments -------------------------------------------------------------------------


def zernike(image, count: int, seed: int, size: int = 64, degree: int = 16) -> Found:
    """Magnitudes of the Zernike moments of patches, which no rotation changes; k-means."""
    of = patches(image, size, size, 8)
    return grouped(of.middles, of.pixels, count, seed, degree, f"window {size}, degree {degree}")


def zernike_spectra(image, count: int, seed: int, size: int = 64, degree: int = 16) -> Found:
    """The same of the amplitudes of the patches' spectra, which no shift changes either."""
    of = patches(image, size, size, 8)
    double = np.concatenate(
        [np.abs(scipy.fft.fft2(windowed(p), s=(2 * size, 2 * size))) for p in batches(of.pixels)]
    )
    # up to a quarter of a cycle a pixel
    low = np.fft.fftshift(double, axes=(1, 2))[:, size // 2 : -size // 2, size // 2 : -size // 2]
    return grouped(of.middles, low, count, seed, degree, f"window {size}, degree {degree}")


def batches(pixels, count: int = 8):
    return np.array_split(pixels, count)


def grouped(middles, pixels, count, seed, degree, note) -> Found:
    basis = zernike_basis(pixels.shape[1], degree)
    inside = np.abs(basis[0]) > 0
    values = pixels[:, inside].astype(np.float32)
    values = values - values.mean(1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    basis = basis[1:][:, inside].T.astype(np.complex64)
    moments = np.hypot(values @ basis.real.copy(), values @ basis.imag.copy())
    groups = KMeans(count, n_init=10, random_state=seed)
    return Found(middles, groups.fit_predict(StandardScaler().fit_transform(moments)), note)


def zernike_basis(size: int, degree: int) -> np.ndarray:
    """[moments, size, size]: conj(V_nm) (n + 1) / pi of n <= degree, m >= 0; the first is n = 0."""
    along = (np.arange(size) + 0.5) * 2.0 / size - 1.0
    y, x = np.meshgrid(along, along, indexing="ij")
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    basis = [
        (n + 1.0) / np.pi * radial(n, m, radius) * np.exp(-1j * m * angle)
        for n in range(degree + 1)
        for m in range(n % 2, n + 1, 2)
    ]
    return np.where(radius <= 1.0, basis, 0.0)


def radial(n: int, m: int, radius) -> np.ndarray:
    f = math.factorial
    return sum(
        (-1) ** k
        * f(n - k)
        / (f(k) * f((n + m) // 2 - k) * f((n - m) // 2 - k))
        * radius ** (n - 2 * k)
        for k in range((n - m) // 2 + 1)
    )


# --- hyperspy --------------------------------------------------------------------------------


def hyperspy_nmf(image, count: int, seed: int, size: int = 64) -> Found:
    """decomposition(algorithm="NMF") of the power spectra of patches under a Hann window."""
    import hyperspy.api as hs

    of = patches(image, size, size, 8)
    power = np.abs(np.fft.rfft2(windowed(of.pixels.astype(float)))) ** 2
    signal = hs.signals.Signal1D(power.reshape(*of.grid, -1))
    signal.decomposition(algorithm="NMF", output_dimension=count, print_info=False)
    abundance = signal.get_decomposition_loadings().data.reshape(count, -1).T
    parts = signal.get_decomposition_factors().data.reshape(count, -1)
    return Found(of.middles, most(abundance, parts), f"window {size}")


NEEDS = {"atomai fft": "atomai", "atomai rvae": "atomai", "hyperspy": "hyperspy.api"}
PEERS = {
    "zernike": zernike,
    "zernike of spectra": zernike_spectra,
    "atomai fft": atomai_fft,
    "hyperspy": hyperspy_nmf,
    "paper": paper,
    "paper mended": paper_mended,
    "atomai rvae": atomai_rvae,
}


def compared(path: pathlib.Path, peer: str, settings: dict) -> dict:
    name, seed, dose = path.stem.split("_")
    data = np.load(path)
    began = time.process_time()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        found = PEERS[peer](data["image"], int(data["count"]), int(seed), **settings)
    seconds = time.process_time() - began
    middles = np.stack(np.meshgrid(*2 * [data["middles"]], indexing="ij"), -1).reshape(-1, 2)
    labels = found.labels[scipy.spatial.cKDTree(found.middles).query(middles)[1]]
    true = data["phase"][tuple(middles.T)]
    crystal = true < data["count"]
    return {
        "peer": peer,
        "set": name,
        "seed": int(seed),
        "electrons_per_px": float(dose),
        "index": round(float(adjusted_rand_score(true[crystal], labels[crystal])), 4),
        "index_all": round(float(adjusted_rand_score(true, labels)), 4),
        "seconds": round(seconds, 1),
        "note": found.note,
    }


def run(given) -> None:
    for peer in given.peers:
        try:
            importlib.import_module(NEEDS.get(peer, "numpy"))
        except ImportError as error:
            print(f"left out: {peer} ({error})", flush=True)
            continue
        for name, seed in ((n, s) for n in given.sets for s in given.seeds):
            path = given.images / f"{name}_{seed}_{given.dose:g}.npz"
            line = json.dumps(compared(path, peer, given.settings))
            print(line, flush=True)
            with given.out.open("a") as file:
                file.write(line + "\n")


def table(path: pathlib.Path, key: str = "index") -> None:
    """Rows for the README: mean of the seeds from 100 on, and the worst in brackets."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for peer in PEERS:
        cells = []
        for case in CASES:
            of = {
                r["seed"]: r[key]
                for r in rows
                if r["peer"] == peer
                and (r["set"], r["electrons_per_px"]) == case
                and r["seed"] >= 100
            }
            values = list(of.values())
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f})" if values else "")
        seconds = [r["seconds"] for r in rows if r["peer"] == peer and r["seed"] >= 100]
        mean = f"{np.mean(seconds):.0f}" if seconds else ""
        print(f"| — {peer} | {' | '.join(cells)} | {mean} |")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--images", type=pathlib.Path)
    arguments.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    arguments.add_argument("--sets", nargs="+", default=["A", "B", "C"])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    arguments.add_argument("--dose", type=float, default=60.0)
    arguments.add_argument("--settings", type=json.loads, default={}, help="of a peer, in JSON")
    arguments.add_argument("--out", type=pathlib.Path, default=FILE)
    arguments.add_argument("--table", action="store_true")
    given = arguments.parse_args()
    if given.table:
        for key in ("index", "index_all"):
            print(key)
            table(given.out, key)
    else:
        run(given)
