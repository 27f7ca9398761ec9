"""How a simulated HAADF signal depends on the pixel: micjax beside abTEM.

    python experiments/haadf_accuracy/run.py [--abtem PYTHON]    # minutes; writes results.json
    python experiments/haadf_accuracy/run.py --table
    python experiments/haadf_accuracy/run.py --figure

SrTiO3 along [001], 3 x 3 x 10 cells (39 Å), off the grid and with thermal displacements; every side
is given the same atoms. 200 keV, 21.4 mrad, the mean of nine places of the probe over one cell, 40
to 80 mrad, double precision. `PYTHON` is an interpreter that has abTEM; without it its columns stay
as they are in results.json.

    exact              micjax, the exact structure factor
    exact, halved      the same, the potential on pixels half as wide as those of the waves
    micjax as abTEM    micjax, projection="abtem": atoms spread over four pixels
    abTEM infinite     abTEM's default
    abTEM finite       abTEM, projection="finite"
"""

import argparse
import json
import os
import pathlib
import subprocess

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import annulus
from micjax.physics.electrons.multislice import band_limit, transmission
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.stem import scanned

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results.json"
EDGE_A, CELLS, THICK = 3.905, 3, 10
ENERGY_KEV, SEMIANGLE_MRAD, RING_MRAD = 200.0, 21.4, (40.0, 80.0)
BASIS = {
    38: [(0, 0, 0)],
    22: [(0.5, 0.5, 0.5)],
    8: [(0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
}
SIGMA_A = {38: 0.0787, 22: 0.0746, 8: 0.0880}  # root mean square displacement along an axis
SHIFT_A = (0.3137, 0.1729, EDGE_A / 4)  # off the grid; in z to the middle of the slices
PIXELS = (120, 180, 240, 360, 480)
CONVERGED, BEST = 600, "exact, halved"
SEEDS = (0, 1, 2)
# projection, and how much finer the pixels of the potential are
OURS = {"exact": ("exact", 1), "exact, halved": ("exact", 2), "micjax as abTEM": ("abtem", 1)}
THEIRS = {"abTEM infinite": "infinite", "abTEM finite": "finite"}


def crystal(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atomic numbers, positions (x, y, z) and box, Å."""
    numbers = np.array([z for z, places in BASIS.items() for _ in places])
    basis = np.array([p for places in BASIS.values() for p in places])
    cells = np.stack(np.meshgrid(*map(np.arange, (CELLS, CELLS, THICK)), indexing="ij"), -1)
    position = (cells.reshape(-1, 1, 3) + basis).reshape(-1, 3) * EDGE_A + SHIFT_A
    numbers = np.tile(numbers, cells.size // 3)
    sigma = np.vectorize(SIGMA_A.get)(numbers)[:, None]
    position = position + sigma * np.random.default_rng(seed).normal(size=position.shape)
    box = EDGE_A * np.array([CELLS, CELLS, THICK])
    return numbers, position % box, box


def places_A() -> np.ndarray:
    """(x, y) of the probes."""
    axis = EDGE_A * (1.0 + np.arange(3) / 3.0)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def signal(seed: int, pixels: int, projection: str, finer: int) -> float:
    """micjax's mean HAADF signal, as a fraction of the beam."""
    numbers, position, box = crystal(seed)
    shape, sampling = (pixels, pixels), (box[1] / pixels, box[0] / pixels)
    thickness = np.full(2 * THICK, EDGE_A / 2)
    limit, wavelength = band_limit(shape, sampling), optics.wavelength_A(ENERGY_KEV)
    angles = optics.angles_mrad(shape, np.asarray(sampling), wavelength)
    probe = optics.probe(angles, SEMIANGLE_MRAD, {}, wavelength)
    atoms, fine = Atoms(numbers, position, box), (finer * pixels, finer * pixels)
    potential = potential_VA(atoms, fine, thickness, projection=projection)
    seen = scanned(
        probe,
        jnp.asarray(places_A()[:, ::-1]),
        transmission(potential, ENERGY_KEV, limit),
        thickness,
        sampling,
        ENERGY_KEV,
        annulus(angles, *RING_MRAD),
        limit=limit,
    )
    return float(seen.mean())


def abtem_signals(python: str, seed: int) -> dict[str, dict[int, float]]:
    """abTEM's, for the same atoms."""
    numbers, position, box = crystal(seed)
    task = {
        "numbers": numbers.tolist(),
        "positions": position.tolist(),
        "cell": box.tolist(),
        "slice_thickness": EDGE_A / 2,
        "energy_eV": 1e3 * ENERGY_KEV,
        "semiangle_mrad": SEMIANGLE_MRAD,
        "ring_mrad": RING_MRAD,
        "places": places_A().tolist(),
        "pixels": PIXELS,
        "projections": THEIRS,
    }
    run = subprocess.run(
        [python, str(HERE / "abtem_side.py")],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    return {name: {int(n): v for n, v in by.items()} for name, by in found.items()}


def results(abtem: str | None) -> dict[str, dict[str, list[float]]]:
    """{side: {pixels: a value for each seed}}."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, how in OURS.items():
        counts = (*PIXELS, CONVERGED) if name == BEST else PIXELS
        found[name] = {str(n): [signal(s, n, *how) for s in SEEDS] for n in counts}
        print(name, found[name], flush=True)
    if abtem is not None:
        runs = [abtem_signals(abtem, seed) for seed in SEEDS]
        for name in THEIRS:
            found[name] = {str(n): [run[name][n] for run in runs] for n in PIXELS}
    return found


def errors(found: dict) -> dict[str, np.ndarray]:
    """In % of the converged value, `[pixels, seeds]` by side."""
    converged = np.array(found[BEST][str(CONVERGED)])
    return {
        name: np.array([100.0 * (np.array(by[str(n)]) / converged - 1.0) for n in PIXELS])
        for name, by in found.items()
    }


def table(found: dict) -> str:
    """Errors against the converged value, and of abTEM's projection alone."""
    off = errors(found)
    columns = [*off, "abTEM infinite over exact, same pixel"]
    rows = [f"| pixel, Å | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for i, n in enumerate(PIXELS):
        exact, theirs = (np.array(found[k][str(n)]) for k in ("exact", "abTEM infinite"))
        values = [*(e[i] for e in off.values()), 100.0 * (theirs / exact - 1.0)]
        cells = [f"{v.mean():+.2f} ({v.min():+.2f} to {v.max():+.2f})" for v in values]
        rows.append(f"| {CELLS * EDGE_A / n:.4f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def figure(found: dict) -> None:
    from micjax.report import figures

    canvas, axes = figures.new_figure(1, 2, 8.6, 3.4)
    pixel = CELLS * EDGE_A / np.array(PIXELS)
    markers = dict(zip(errors(found), "osD^v", strict=True))
    for (name, off), colour in zip(errors(found).items(), figures.SERIES, strict=False):
        style = {"color": colour, "marker": markers[name], "ms": 5, "lw": 1.2, "label": name}
        if name == "micjax as abTEM":
            style |= {"ms": 9, "mfc": "none", "ls": "none"}  # lies on abTEM infinite
        spread = np.abs(np.stack([off.min(1), off.max(1)]) - off.mean(1))
        axes[0, 0].errorbar(pixel, off.mean(1), spread, capsize=2, **style)
        axes[0, 1].loglog(pixel, np.abs(off).mean(1), **style)
    axes[0, 0].axhline(0.0, color=figures.FAINT, lw=0.8)
    axes[0, 0].set_ylabel("error of the HAADF signal (%)", fontsize=8)
    axes[0, 1].set_ylabel("size of the error (%)", fontsize=8)
    axes[0, 1].set_xticks(pixel, [f"{p:.3f}" for p in pixel])
    axes[0, 1].minorticks_off()
    for ax in axes.flat:
        ax.set_xlabel("pixel (Å)", fontsize=8)
        ax.grid(alpha=0.25, lw=0.5)
    axes[0, 0].legend(fontsize=7, frameon=False)
    canvas.savefig(HERE / "haadf_accuracy.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--abtem", metavar="PYTHON", help="an interpreter that has abTEM")
    parser.add_argument("--table", action="store_true", help="of results.json")
    parser.add_argument("--figure", action="store_true", help="of results.json")
    given = parser.parse_args()
    if not (given.table or given.figure):
        jax.config.update("jax_enable_x64", True)
        RESULTS.write_text(json.dumps(results(given.abtem), indent=1) + "\n")
    found = json.loads(RESULTS.read_text())
    if given.figure:
        return figure(found)
    print(table(found))


if __name__ == "__main__":
    main()
