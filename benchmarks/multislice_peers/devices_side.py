"""A side of `benchmarks/multislice.py`: shares of a task on virtual devices of some cores.

    python devices_side.py TASK DEVICES CORE,CORE,...

Answers each line with the wall time of a call.
"""

import json
import os
import sys
import time

task, count, cores = sys.argv[1], int(sys.argv[2]), {int(c) for c in sys.argv[3].split(",")}
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ["NPROC"] = str(max(count, len(cores)))  # threads of XLA
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
if hasattr(os, "sched_setaffinity"):  # before JAX counts the cores
    os.sched_setaffinity(0, cores)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import specimen  # noqa: E402
from specimen import EDGE_A, ENERGY_KEV, SEMIANGLE_MRAD, SLICE_A  # noqa: E402

from micjax.core import devices  # noqa: E402
from micjax.physics.electrons import optics  # noqa: E402
from micjax.physics.electrons.detectors import annulus  # noqa: E402
from micjax.physics.electrons.multislice import band_limit, multislice, transmission  # noqa: E402
from micjax.physics.electrons.phonons import averaged, displaced  # noqa: E402
from micjax.physics.electrons.potentials.layers import Atoms, layers, potential_VA  # noqa: E402
from micjax.physics.electrons.stem import scanned  # noqa: E402

PIXELS, SLICES, PROBES, MOMENTS = 256, 20, 64, 8


def work():
    """The compiled function and its arguments."""
    mesh = devices.row() if count > 1 else None
    shape, cells = (PIXELS, PIXELS), specimen.cells_across(PIXELS)
    sampling, dz = (cells * EDGE_A / PIXELS,) * 2, np.full(SLICES, SLICE_A)
    cell = Atoms(specimen.NUMBERS, EDGE_A * specimen.FRACTIONS, (EDGE_A,) * 3, u_A2=0.008)
    atoms = cell.repeated(cells, cells, SLICES // 2)
    angles = optics.angles_mrad(shape, np.asarray(sampling), optics.wavelength_A(ENERGY_KEV))
    probe = optics.probe(angles, SEMIANGLE_MRAD, {}, optics.wavelength_A(ENERGY_KEV))
    if task == "phonons":
        slices = layers(atoms, dz)

        def behind(key, probe):
            potential = potential_VA(displaced(key, atoms), shape, dz, slices=slices)
            return multislice(probe, potential, SLICE_A, sampling, ENERGY_KEV)

        keys = jax.random.split(jax.random.key(0), MOMENTS)
        if mesh is not None:
            return jax.jit(lambda k, p: averaged(lambda key: behind(key, p), k, mesh)), keys, probe
        one = jax.jit(behind)
        return lambda k, p: averaged(lambda key: one(key, p), k), keys, probe
    limit, ring = band_limit(shape, sampling), annulus(angles, *specimen.HAADF_MRAD)[None]
    t = transmission(potential_VA(atoms, shape, dz), ENERGY_KEV, limit)
    places = jnp.asarray(specimen.beam_starts_A(PROBES, cells), jnp.float32)
    options = {"limit": limit, "mesh": mesh}

    def scan(places, probe, t):
        return scanned(probe, places, t, SLICE_A, sampling, ENERGY_KEV, ring, **options)

    return jax.jit(scan), places, probe, t


specimen.keep_memory()
function, *arguments = work()
jax.block_until_ready(function(*arguments))
for _ in sys.stdin:
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    print(json.dumps({"s": time.perf_counter() - began}), flush=True)
