"""What a grid loses: electrons of a plane wave along [001], behind some 100 Å.

    python experiments/cbed/grids.py [--u-A2 0.008] [--energy-keV 200]    two minutes

Plain multislice of the mean wave in NumPy, against 128 x 128 pixels over the cell. `q` is
2 pi sqrt(u) k at the band limit; the rule of `micjax.problems.cbed` is q = 2.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np

from micjax.physics.electrons.multislice import band_limit, highest_angle_mrad, propagator
from micjax.physics.electrons.pacbed import mean_transmission, planes
from micjax.physics.electrons.potentials.layers import Atoms

FACES = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
QUARTERS = [[x + 0.25 for x in place] for place in FACES]
CRYSTALS = {
    "GaAs": ([31] * 4 + [33] * 4, FACES + QUARTERS, 5.6533),
    "Si": ([14] * 8, FACES + QUARTERS, 5.4309),
    "SrTiO3": ([38, 22, 8, 8, 8], [[0, 0, 0], [0.5, 0.5, 0.5], *FACES[1:]], 3.905),
    "Au": ([79] * 4, FACES, 4.08),
}


def left(name: str, u_A2: float, n: int, energy_keV: float) -> float:
    """The electrons that an elastic wave still has."""
    numbers, fractions, edge_A = CRYSTALS[name]
    atoms = Atoms(numbers, edge_A * np.asarray(fractions), [edge_A] * 3, u_A2=u_A2)
    layers = planes(np.asarray(fractions, float)[:, 2], int(np.ceil(edge_A / 2.0)))
    t = np.asarray(mean_transmission(atoms, layers, (n, n), energy_keV))
    sampling = (edge_A / n, edge_A / n)
    travel = propagator((n, n), sampling, edge_A / len(t), energy_keV)
    travel = np.asarray(travel * band_limit((n, n), sampling))
    spectrum = np.zeros((n, n), complex)
    spectrum[0, 0] = 1.0
    for _ in range(round(100.0 / edge_A)):
        for slice in t:
            spectrum = np.fft.fft2(slice * np.fft.ifft2(spectrum)) * travel
    return float(np.sum(np.abs(spectrum) ** 2))


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--u-A2", type=float, default=0.008)
    parser.add_argument("--energy-keV", type=float, default=200.0)
    given = parser.parse_args()
    for name, (_, _, edge_A) in CRYSTALS.items():
        all_of_it = left(name, given.u_A2, 128, given.energy_keV)
        for n in (32, 40, 48, 54, 64, 80):
            q = 2.0 * np.pi * np.sqrt(given.u_A2) * n / (3.0 * edge_A)
            lost = 100.0 * (all_of_it - left(name, given.u_A2, n, given.energy_keV))
            angle = highest_angle_mrad((edge_A / n,) * 2, given.energy_keV)
            print(f"{name:7} {n:3} pixels  {angle:4.0f} mrad  q {q:.2f}  {lost:6.2f} % lost")


if __name__ == "__main__":
    main()
