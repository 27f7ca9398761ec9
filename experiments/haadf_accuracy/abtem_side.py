"""abTEM's side of run.py: a task as JSON on standard input, mean HAADF signals on the output."""

import contextlib
import json
import sys
import warnings

import abtem
import ase
import numpy as np

warnings.filterwarnings("ignore")
abtem.config.set({"diagnostics.progress_bar": False, "dask.lazy": False, "precision": "float64"})


def signal(task: dict, pixels: int, projection: str) -> float:
    atoms = ase.Atoms(task["numbers"], positions=task["positions"], cell=task["cell"], pbc=True)
    potential = abtem.Potential(
        atoms,
        gpts=pixels,
        slice_thickness=task["slice_thickness"],
        parametrization="lobato",
        projection=projection,
    )
    probe = abtem.Probe(energy=task["energy_eV"], semiangle_cutoff=task["semiangle_mrad"])
    probe.grid.match(potential)
    seen = probe.scan(
        potential,
        scan=abtem.CustomScan(np.array(task["places"])),
        detectors=abtem.AnnularDetector(*task["ring_mrad"]),
        lazy=False,
    )
    return float(seen.array.mean())


task = json.load(sys.stdin)
with contextlib.redirect_stdout(sys.stderr):
    found = {
        name: {n: signal(task, n, projection) for n in task["pixels"]}
        for name, projection in task["projections"].items()
    }
print(json.dumps(found))
