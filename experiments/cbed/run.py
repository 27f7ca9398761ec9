"""Thickness, tilt and thermal motion from one simulated pattern, repeated.

    python experiments/cbed/run.py [--repeats 100] [--dose 1e6]   one JSON line each, appended
    python experiments/cbed/run.py --table                        what results.jsonl says
    python experiments/cbed/run.py --phonons 60                   a pattern of frozen phonons

Each repeat draws a crystal of strontium titanate (40 to 110 Å, tilt with a standard deviation of
1.5 mrad, U within a factor of 1.3, strain 0.2 %) and a pattern of `dose` electrons, and solves
`micjax.problems.cbed` from its defaults. 90 % intervals are those of the Laplace approximation.
`--phonons N` makes the counts with N displaced crystals of 4 x 4 cells on twice as fine a grid,
instead of the model's own mean wave and diffuse background.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

import micjax
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.multislice import band_limit, propagate, transmission
from micjax.physics.electrons.pacbed import camera
from micjax.physics.electrons.phonons import displaced
from micjax.physics.electrons.potentials.layers import Atoms, layers, potential_VA
from micjax.problems import cbed

HERE = pathlib.Path(__file__).parent
BARS = {"thickness_A": 2.0, "tilt_y_mrad": 0.2, "tilt_x_mrad": 0.2, "u_percent": 5.0}


def pixels():
    along = 1.5 * np.arange(-20, 21)
    return camera(along, along)


def drawn(key, dose: float):
    """A problem at random true values."""
    keys = jax.random.split(key, 5)
    return cbed.problem(dose=dose).at(
        {
            "forward.thickness_A": jax.random.uniform(keys[0], (), minval=40.0, maxval=110.0),
            "forward.tilt_mrad": 1.5 * jax.random.normal(keys[1], (2,)),
            "forward.u_A2": 0.008 * jnp.exp(0.26 * jax.random.normal(keys[2], ())),
            "forward.strain": 0.002 * jax.random.normal(keys[4], ()),
            "forward.diffuse_share": jax.random.uniform(keys[3], (), minval=0.25, maxval=0.5),
        }
    )


def numbers(values) -> dict[str, float]:
    tilt = np.asarray(values["forward.tilt_mrad"])
    return {
        "thickness_A": float(values["forward.thickness_A"]),
        "tilt_y_mrad": float(tilt[0]),
        "tilt_x_mrad": float(tilt[1]),
        "u_A2": float(values["forward.u_A2"]),
        "strain": float(values["forward.strain"]),
    }


def solved(truth, x, y, dose: float, key) -> dict:
    began = time.perf_counter()
    solution = micjax.solve(cbed, cbed.problem(dose=dose), x, y, key=key)
    draws = solution.laplace.sample(key, 4000)
    draws["forward.tilt_mrad"] = np.moveaxis(draws["forward.tilt_mrad"], -1, 0)
    low, high = (
        numbers({n: np.quantile(d, q, axis=-1) for n, d in draws.items()}) for q in (0.05, 0.95)
    )
    true, best = numbers(truth.values()), numbers(solution.problem.values())
    error = {n: best[n] - true[n] for n in true}
    return {
        "truth": true,
        "error": error,
        "half_width": {n: (high[n] - low[n]) / 2 for n in true},
        "covered": {n: bool(low[n] < true[n] < high[n]) for n in true},
        "starts_at_best": int(np.sum(solution.fit.starts_losses < solution.fit.loss + 1.0)),
        "chi_squared_per_datum": solution.metrics["chi_squared_per_datum"],
        "seconds": round(time.perf_counter() - began, 1),
    }


def frozen_phonons(truth, configurations: int, across: int = 4):
    """What a camera sees of `across` x `across` cells with displaced atoms, averaged over all
    places of the probe; its pixels are the frequencies of these cells."""
    forward = truth.forward
    n, box, energy = 2 * forward.shape[0], np.asarray(forward.box_A), forward.energy_keV
    cells = int(round(float(forward.thickness_A) / box[2]))
    crystal = forward.atoms().repeated(across, across, cells)
    thickness = np.full(cells * len(forward.layers), box[2] / len(forward.layers))
    shape, sampling = (across * n, across * n), (box[1] / n, box[0] / n)
    wavelength = optics.wavelength_A(energy)
    y, x = optics.angles_mrad(shape, np.asarray(sampling), wavelength)
    pixel = float(x[0, 1])
    lit = np.clip((float(forward.semiangle_mrad) - np.asarray(jnp.hypot(y, x))) / pixel + 0.5, 0, 1)
    beams = np.argwhere(lit > 0)
    weights = jnp.asarray(lit[tuple(beams.T)] / lit.sum())
    limit, slices = band_limit(shape, sampling), layers(crystal, thickness)
    places = [np.arange(m) / m for m in shape]

    @jax.jit
    def pattern(position_A):
        atoms = Atoms(crystal.numbers, position_A, crystal.box_A)
        fine = (2 * shape[0], 2 * shape[1])  # the phase has finer details than the waves
        potential = potential_VA(atoms, fine, thickness, slices=slices)
        t = transmission(potential, energy, limit)

        def add(sum, beam):
            (by, bx), weight = beam
            wave = jnp.exp(2j * jnp.pi * (by * places[0][:, None] + bx * places[1]))
            after = propagate(
                wave / wave.size,
                t,
                thickness[0],
                sampling,
                energy,
                tilt_mrad=forward.tilt_mrad,
                limit=limit,
            )
            return sum + weight * diffraction(after), None

        return jax.lax.scan(add, jnp.zeros(shape), (jnp.asarray(beams, float), weights))[0]

    total = 0.0
    for i in range(configurations):
        moved = displaced(jax.random.key(i), crystal).position_A
        # a slice keeps its atoms
        total = total + pattern(moved.at[:, 2].set(crystal.position_A[:, 2]))
        print(f"configuration {i + 1} of {configurations}", flush=True)
    reach = np.arange(-18, 19)
    return camera(pixel * reach, pixel * reach), total[np.ix_(reach, reach)] / configurations


def table(lines: list[dict]) -> None:
    errors, covered = [r["error"] for r in lines], [r["covered"] for r in lines]
    for row, r in zip(errors, lines, strict=True):
        row["u_percent"] = 100.0 * row["u_A2"] / r["truth"]["u_A2"]
    print(f"{len(lines)} repeats, {np.median([r['seconds'] for r in lines]):.0f} s each (median)")
    print("quantity       bar    median |error|   90 %      worst     within bar   covered at 90 %")
    for name, bar in BARS.items():
        size = np.abs([e[name] for e in errors])
        held = sum(c[name.replace("u_percent", "u_A2")] for c in covered)
        print(
            f"{name:<13} {bar:>4}    {np.median(size):>10.3f}   {np.quantile(size, 0.9):>8.3f}   "
            f"{size.max():>8.3f}   {int((size < bar).sum()):>8}   {held:>12}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--dose", type=float, default=1e6)
    parser.add_argument("--phonons", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    given = parser.parse_args()
    if given.table:
        return table([json.loads(line) for line in given.out.read_text().splitlines()])
    if given.phonons:
        truth, _, _ = cbed.example(jax.random.key(0), given.dose)
        height = truth.forward.box_A[2]
        truth = truth.at({"forward.thickness_A": 22 * height, "forward.strain": 0.0})
        x, pattern = frozen_phonons(truth, given.phonons)
        y = jax.random.poisson(jax.random.key(1), given.dose * pattern).astype(float)
        line = {"phonons": given.phonons, **solved(truth, x, y, given.dose, jax.random.key(2))}
        (HERE / "phonons.json").write_text(json.dumps(line, indent=1) + "\n")
        print(line)
        return None
    for seed in range(given.first, given.first + given.repeats):
        truth_key, noise_key, key = jax.random.split(jax.random.key(seed), 3)
        truth = drawn(truth_key, given.dose)
        x = pixels()
        y = truth.noise(truth.forward(x)).sample(noise_key).astype(float)
        line = json.dumps({"seed": seed, **solved(truth, x, y, given.dose, key)})
        print(line, flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")
    return None


if __name__ == "__main__":
    main()
