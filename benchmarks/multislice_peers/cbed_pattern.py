"""A position-averaged convergent-beam pattern that abTEM makes, for `micjax fit cbed`.

    python benchmarks/multislice_peers/cbed_pattern.py GaAs --out gaas      in a venv with abTEM

Frozen phonons of independent atoms, a probe at places that take the interference of overlapping
discs away (more across a cell than twice the semiangle has vectors of the lattice), and counts of
Poisson's law. Writes OUT.npy, OUT.tif and OUT.npz (key `pattern`), rows along y, the cell as
OUT.vasp, and OUT.json: what is true, and the angle of a pixel, which is that of the supercell.
"""

import argparse
import json
import pathlib
import warnings

warnings.filterwarnings("ignore")

import abtem  # noqa: E402
import ase  # noqa: E402
import ase.io  # noqa: E402
import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from abtem.core.energy import energy2wavelength  # noqa: E402
from ase.build import bulk  # noqa: E402

abtem.config.set(
    {
        "diagnostics.progress_bar": False,
        "dask.lazy": False,
        "precision": "float32",
        "fft": "fftw",
        "fftw.threads": 1,
    }
)
CELLS = {  # the beam along [001], which is z
    "GaAs": lambda: bulk("GaAs", "zincblende", a=5.6533, cubic=True),
    "Si": lambda: bulk("Si", "diamond", a=5.4309, cubic=True),
    "SrTiO3": lambda: ase.Atoms(
        "SrTiO3",
        scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
        cell=[3.905] * 3,
        pbc=True,
    ),
}


def pattern(given: argparse.Namespace, rng: np.random.Generator):
    """The fraction of the beam in each pixel `[y, x]`, and the angle of a pixel in mrad."""
    cell = CELLS[given.crystal]()
    cell.translate([0.0, 0.0, cell.cell[2, 2] / (2 * given.slices)])  # no atom leaves its slice
    edge_A, thick_A = cell.cell[0, 0], cell.cell[2, 2]
    moving = abtem.FrozenPhonons(
        cell * (given.across, given.across, given.cells),
        num_configs=given.configurations,
        sigmas=np.sqrt(given.u_A2),
        seed=given.seed,
    )
    energy_eV = 1e3 * given.energy_keV
    probe = abtem.Probe(
        energy=energy_eV,
        semiangle_cutoff=given.semiangle_mrad,
        gpts=given.pixels,
        extent=given.across * edge_A,
        tilt=tuple(given.tilt_mrad[::-1]),
    )
    fraction = np.stack(np.meshgrid(*2 * [np.arange(given.places) / given.places]), -1)
    half, total = given.camera // 2, 0.0
    for configuration in moving:
        potential = abtem.Potential(
            configuration,
            gpts=given.pixels,
            slice_thickness=thick_A / given.slices,
            parametrization="lobato",
        ).build(lazy=False)
        # each place in a cell of its own: more atoms take part in the mean
        where = rng.integers(0, given.across, fraction.shape) + fraction
        waves = probe.build(scan=abtem.CustomScan(edge_A * where.reshape(-1, 2)), lazy=False)
        spectra = np.fft.fft2(np.asarray(waves.multislice(potential).array, np.complex64))
        intensity = (np.abs(spectra) ** 2).mean(0)
        total = total + intensity / given.configurations
        print(f"{given.crystal}: {intensity.sum():.4f} of the beam left", flush=True)
    seen = np.fft.fftshift(total)
    middle = given.pixels // 2
    seen = seen[middle - half : middle + half + 1, middle - half : middle + half + 1].T
    return seen, 1e3 * energy2wavelength(energy_eV) / (given.across * edge_A), cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("crystal", choices=CELLS)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--cells", type=int, default=17, help="along the beam")
    parser.add_argument("--tilt-mrad", type=float, nargs=2, default=[1.2, -0.7], help="y and x")
    parser.add_argument("--u-A2", type=float, default=0.010)
    parser.add_argument("--energy-keV", type=float, default=200.0)
    parser.add_argument("--semiangle-mrad", type=float, default=8.0)
    parser.add_argument("--dose", type=float, default=1e6)
    parser.add_argument("--camera", type=int, default=73, help="pixels along each edge")
    parser.add_argument("--across", type=int, default=6, help="cells along x and y")
    parser.add_argument("--pixels", type=int, default=768, help="of the wave, along x and y")
    parser.add_argument("--slices", type=int, default=4, help="of a cell")
    parser.add_argument("--places", type=int, default=4, help="of the probe along a cell")
    parser.add_argument("--configurations", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    seen, pixel_mrad, cell = pattern(given, rng)
    counts = rng.poisson(given.dose * seen).astype(np.float32)
    stem = str(given.out)
    np.save(f"{stem}_mean.npy", seen)
    np.save(f"{stem}.npy", counts)
    np.savez_compressed(f"{stem}.npz", pattern=counts.astype(np.uint16))
    tifffile.imwrite(f"{stem}.tif", counts)
    ase.io.write(f"{stem}.vasp", cell, direct=True)
    truth = {k: v for k, v in vars(given).items() if k != "out"}
    truth |= {"mrad_per_px": pixel_mrad, "thickness_A": given.cells * cell.cell[2, 2]}
    truth |= {"on_camera": float(seen.sum())}
    pathlib.Path(f"{stem}.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
