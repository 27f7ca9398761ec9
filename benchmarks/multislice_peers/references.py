"""What abTEM makes of small crystals, for the tests: `tests/references/abtem_*.npz`.

    python benchmarks/multislice_peers/references.py        in a venv with abTEM

SrTiO3 at 200 keV in double precision, on grids whose pixels are not square. Arrays are abTEM's
`[x, y]`, corners at the first pixel, in Å, V Å, mrad and 1 / Å; waves are 1 on average, patterns
sum to 1. Of large arrays every STEP-th row and column is kept. Every file holds its atoms.
"""

import json
import os
import pathlib
import warnings

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
warnings.filterwarnings("ignore")

import abtem  # noqa: E402
import ase  # noqa: E402
import numpy as np  # noqa: E402
from abtem.core.energy import energy2wavelength  # noqa: E402
from specimen import EDGE_A, ENERGY_KEV, FRACTIONS, NUMBERS, SEMIANGLE_MRAD, SLICE_A  # noqa: E402

abtem.config.set(
    {"diagnostics.progress_bar": False, "dask.lazy": False, "precision": "float64", "fft": "numpy"}
)
FOLDER = pathlib.Path(__file__).parents[2] / "tests/references"
ENERGY_EV = 1e3 * ENERGY_KEV
DEVIATION_A = {38: 0.079, 22: 0.075, 8: 0.088}  # of the thermal motion
OFF_GRID_A = (0.3137, 0.1729, 0.0)
FULL = {"max_angle": "full", "fftshift": False, "parity": "same"}
STEP = 2
KEPT = (..., slice(None, None, STEP), slice(None, None, STEP))


def crystal(cells, shift_A=(0.0, 0.0, 0.0), seed=None):
    """Repeated along x, y, z; with a seed its atoms are displaced as by thermal motion."""
    cell = ase.Atoms(NUMBERS, scaled_positions=FRACTIONS, cell=[EDGE_A] * 3, pbc=True)
    atoms = cell * cells
    position = atoms.positions + shift_A
    if seed is not None:
        deviation = np.array([DEVIATION_A[z] for z in atoms.numbers])[:, None]
        position = position + deviation * np.random.default_rng(seed).normal(size=position.shape)
    atoms.positions[:] = position % np.diag(atoms.cell)
    return atoms


def potential_of(atoms, pixels, table="lobato", **options):
    options = {"slice_thickness": SLICE_A} | options
    return abtem.Potential(atoms, gpts=pixels, parametrization=table, **options).build(lazy=False)


def exit_wave(potential):
    return abtem.PlaneWave(energy=ENERGY_EV).multislice(potential, lazy=False)


def pattern(waves):
    return np.asarray(waves.diffraction_patterns(**FULL).array)


def described(atoms, potential) -> dict:
    cell = np.diag(np.asarray(atoms.cell))
    return {
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": cell,
        "gpts": np.array(potential.gpts),
        "sampling": cell[:2] / potential.gpts,
        "slice_thickness": np.array(potential.slice_thickness),
        "wavelength": energy2wavelength(ENERGY_EV),
    }


def save(name: str, **arrays) -> None:
    np.savez_compressed(FOLDER / f"abtem_{name}.npz", **arrays)


def plane_waves() -> None:
    """Atoms on pixels and between them, two tables; the image of the last one in a microscope."""
    lens = {"C10": -400.0, "C30": 1e6, "focal_spread": 35.0, "angular_spread": 0.5}
    lens |= {"semiangle": 30.0}
    for grid, shift, seed in (("on", (0.0, 0.0, 0.0), None), ("off", OFF_GRID_A, 7)):
        atoms = crystal((1, 1, 4), shift, seed)
        kept = {}
        for table in ("kirkland", "lobato"):
            potential = potential_of(atoms, (32, 40), table)
            wave = exit_wave(potential)
            kept[f"{table}_potential"] = potential.array[:, ::4, ::4]
            kept[f"{table}_exit_wave"] = wave.array[KEPT]
            kept[f"{table}_diffraction"] = pattern(wave)[KEPT]
        if grid == "off":
            aberrations = {name: lens[name] for name in ("C10", "C30")}
            spreads = {name: lens[name] for name in ("focal_spread", "angular_spread")}
            ctf = abtem.CTF(
                energy=ENERGY_EV,
                semiangle_cutoff=lens["semiangle"],
                aberration_coefficients=aberrations,
                **spreads,
            )
            kept["hrtem_lens"] = json.dumps(lens)
            kept["hrtem_wave"] = wave.array
            kept["hrtem_image"] = wave.apply_ctf(ctf).intensity().array[KEPT]
        save(f"plane_wave_{grid}_grid", **described(atoms, potential), **kept)


def finite() -> None:
    """Slices that cut atoms, of three tables; of each potential the mean of every slice."""
    atoms = crystal((1, 1, 4), OFF_GRID_A, 7)
    kept = {}
    for table in ("peng", "lobato", "kirkland"):
        options = {"projection": "finite", "slice_thickness": SLICE_A / 2.0}
        potential = potential_of(atoms, (80, 80), table, **options)
        kept[f"{table}_slice_means"] = potential.array.mean((1, 2))
        kept[f"{table}_exit_wave"] = exit_wave(potential).array[:: 2 * STEP, :: 2 * STEP]
    save("finite", **described(atoms, potential), **kept)


def probes() -> None:
    """An aberrated probe at three places, its patterns with and without a tilt."""
    aberrations = {"C10": -50.0, "C12": 30.0, "phi12": 0.4, "C21": 500.0, "phi21": 1.1}
    aberrations |= {"C23": 300.0, "phi23": -0.3, "C30": -2e5, "C34": 1e5, "phi34": 0.2, "C50": 5e7}
    atoms = crystal((2, 1, 4), OFF_GRID_A, 11)
    potential = potential_of(atoms, (60, 36))
    places, tilt = np.array([[3.9, 1.95], [1.55, 2.85], [4.562, 1.172]]), (5.0, -3.0)
    kept = {"places": places, "tilt_mrad": np.array(tilt), "aberrations": json.dumps(aberrations)}
    for name, options in (("", {}), ("tilted_", {"tilt": tilt})):
        probe = abtem.Probe(
            energy=ENERGY_EV, semiangle_cutoff=SEMIANGLE_MRAD, aberrations=aberrations, **options
        )
        probe.grid.match(potential)
        if not name:
            kept["probe"] = probe.build(scan=places[2:], lazy=False).array[KEPT]
        waves = probe.multislice(potential, scan=places, lazy=False)
        kept[f"{name}diffraction"] = pattern(waves)[KEPT]
    save("probe", semiangle=SEMIANGLE_MRAD, **described(atoms, potential), **kept)


def scan() -> None:
    """Detectors at six places of the probe, by multislice and by PRISM."""
    rings = {"bf": (0.0, 10.0), "abf": (10.7, 21.4), "haadf": (35.0, 48.0)}
    atoms = crystal((2, 2, 4), OFF_GRID_A)
    potential = potential_of(atoms, (48, 54))
    focus = {"C30": -2e4, "defocus": 20.0}
    probe = abtem.Probe(energy=ENERGY_EV, semiangle_cutoff=SEMIANGLE_MRAD, **focus)
    probe.grid.match(potential)
    grid = abtem.GridScan(start=(EDGE_A, EDGE_A), end=(2 * EDGE_A, 2 * EDGE_A), gpts=(2, 3))
    annuli = [abtem.AnnularDetector(*ends) for ends in rings.values()]
    quarters = abtem.SegmentedDetector(
        inner=0.0, outer=30.0, nbins_radial=2, nbins_azimuthal=4, rotation=0.1
    )
    camera = abtem.PixelatedDetector(max_angle=40.0)
    *seen, parts, pixels = probe.scan(
        potential, scan=grid, detectors=[*annuli, quarters, camera], lazy=False
    )
    kept = {name: result.array.ravel() for name, result in zip(rings, seen, strict=True)}
    kept |= {
        "places": np.asarray(grid.get_positions()).reshape(-1, 2),
        "aberrations": json.dumps({"C10": -20.0, "C30": -2e4}),
        "rings": json.dumps(rings),
        "segments": parts.array.reshape(-1, 2, 4),
        "camera": pixels.array.reshape(-1, *pixels.array.shape[-2:]),
        "camera_sampling": np.array(pixels.sampling),
        "centre_of_mass": pixels.center_of_mass().array.ravel(),
    }
    for interpolation in (1, 2, 3):
        matrix = abtem.SMatrix(
            potential=potential,
            energy=ENERGY_EV,
            semiangle_cutoff=SEMIANGLE_MRAD,
            interpolation=interpolation,
            downsample=False,
        )
        ctf = abtem.CTF(energy=ENERGY_EV, semiangle_cutoff=SEMIANGLE_MRAD, **focus)
        seen = matrix.scan(scan=grid, detectors=annuli, ctf=ctf, lazy=False)
        for name, result in zip(rings, seen, strict=True):
            kept[f"prism{interpolation}_{name}"] = result.array.ravel()
        kept[f"prism{interpolation}_beams"] = len(matrix.wave_vectors)
    save("scan", semiangle=SEMIANGLE_MRAD, **described(atoms, potential), **kept)


def frozen_phonons() -> None:
    """Four configurations of the displaced atoms: all of their scattering, and its elastic part."""
    moved = [crystal((1, 1, 4), OFF_GRID_A, 100 + i) for i in range(4)]
    potentials = [potential_of(atoms, (32, 40)) for atoms in moved]
    waves = [exit_wave(potential) for potential in potentials]
    mean = np.mean([wave.array for wave in waves], 0)
    save(
        "frozen_phonons",
        **described(moved[0], potentials[0]),
        configurations=np.stack([atoms.positions for atoms in moved]),
        diffraction=np.mean([pattern(wave) for wave in waves], 0)[KEPT],
        elastic=np.abs(np.fft.fft2(mean) / mean.size)[KEPT] ** 2,
    )


if __name__ == "__main__":
    for case in (plane_waves, finite, probes, scan, frozen_phonons):
        case()
