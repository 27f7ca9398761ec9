"""abTEM's side of `benchmarks/multislice.py`: the tasks wave, potential, stem and prism.

    seq 5 | python benchmarks/multislice_peers/abtem_side.py wave 512 8 10

A user's way: everything eager, float32, FFTW on one thread. Measures once for every line on its
standard input and answers with one JSON object a line, the CPU time in seconds, after a warm-up.
"""

import contextlib
import json
import os
import sys
import time
import warnings

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
warnings.filterwarnings("ignore")

import abtem  # noqa: E402
import ase  # noqa: E402
import specimen  # noqa: E402
from specimen import EDGE_A, ENERGY_KEV, SEMIANGLE_MRAD  # noqa: E402

abtem.config.set(
    {
        "diagnostics.progress_bar": False,
        "dask.lazy": False,
        "precision": "float32",
        "fft": "fftw",
        "fftw.threads": 1,
    }
)
ENERGY_EV = 1e3 * ENERGY_KEV


def potential_of(pixels: int, cells: int, thick: int):
    cell = ase.Atoms(
        specimen.NUMBERS, scaled_positions=specimen.FRACTIONS, cell=[EDGE_A] * 3, pbc=True
    )
    return abtem.Potential(
        cell * (cells, cells, thick),
        gpts=pixels,
        slice_thickness=specimen.SLICE_A,
        parametrization="lobato",
    )


def wave(pixels: int, count: int, slices: int):
    """Waves through a potential that is built before; a plane wave if there is only one."""
    cells = specimen.cells_across(pixels)
    potential = potential_of(pixels, cells, slices // 2).build(lazy=False)
    if count == 1:
        lens = abtem.PlaneWave(energy=ENERGY_EV, gpts=pixels, extent=potential.extent)
        waves = lens.build(lazy=False)
    else:
        lens = abtem.Probe(energy=ENERGY_EV, semiangle_cutoff=SEMIANGLE_MRAD)
        lens.grid.match(potential)
        waves = lens.build(scan=specimen.beam_starts_A(count, cells), lazy=False)
    return lambda: waves.multislice(potential) and None


def potential(pixels: int, slices: int):
    whole = potential_of(pixels, specimen.cells_across(pixels), slices // 2)
    return lambda: whole.build(lazy=False) and None


def _scan(side: int) -> dict:
    places = abtem.GridScan(start=(0, 0), end=(EDGE_A, EDGE_A), gpts=side, endpoint=False)
    detector = abtem.AnnularDetector(*specimen.HAADF_MRAD)
    return {"scan": places, "detectors": detector, "lazy": False}


def stem(side: int):
    """A HAADF image `[y, x]`, from the atoms on."""

    def image():
        whole = potential_of(*specimen.STEM.values())
        probe = abtem.Probe(energy=ENERGY_EV, semiangle_cutoff=SEMIANGLE_MRAD)
        probe.grid.match(whole)
        return probe.scan(whole, **_scan(side)).array.T.tolist()

    return image


def prism(side: int, interpolation: int):
    def image():
        matrix = abtem.SMatrix(
            potential=potential_of(*specimen.STEM.values()),
            semiangle_cutoff=SEMIANGLE_MRAD,
            energy=ENERGY_EV,
            interpolation=interpolation,
        )
        return matrix.scan(**_scan(side)).array.T.tolist()

    return image


TASKS = {"wave": wave, "potential": potential, "stem": stem, "prism": prism}

if __name__ == "__main__":
    specimen.keep_memory()
    name, *numbers = sys.argv[1:]
    call = TASKS[name](*map(int, numbers))
    # numba compiles and FFTW plans; of an image the first few places suffice for that
    warm_up = TASKS[name](2, *map(int, numbers[1:])) if name in ("stem", "prism") else call
    with contextlib.redirect_stdout(sys.stderr):
        warm_up()
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            began = time.process_time()
            answer = call()
            spent = time.process_time() - began
        print(json.dumps({"s": spent, "image": answer}), flush=True)
