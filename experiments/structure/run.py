"""Columns of molybdenum disulphide from a simulated 4D-STEM data set or a series of images.

    python experiments/structure/run.py [--repeats 20] [--data model]   a line each, appended
    python experiments/structure/run.py --data phonons                  counts from another model
    python experiments/structure/run.py --kind hrtem                    a through-focal series
    python experiments/structure/run.py --table                         what results.jsonl says

Each repeat moves all columns (standard deviation 0.05 to 0.1 Å along x and y), draws the occupancy
of one sulphur column in four from 0.3 to 1, and U within a factor of 1.3, and solves
`micjax.problems.structure` from the ideal crystal. With `--data model` the counts are drawn from
the model itself. With `--data phonons` they come from independent moments of vibration, 100 for
each place of the probe alone, on finer pixels and in thinner slices. The half widths of 90 %
intervals are those of the Laplace approximation.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import micjax
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.stem import placed
from micjax.problems import structure
from micjax.problems.structure.model import Scan, shares

HERE = pathlib.Path(__file__).parent
NAMES = ("shift_A", "occupancy", "u_A2")
ALL = slice(None)
PARTS = [("shift_A", ALL, "shift_A"), ("occupancy", ALL, "occupancy")]
PARTS += [("u_A2", 0, "u_A2 of S"), ("u_A2", 1, "u_A2 of Mo")]
REACH_MRAD, PIXEL_MRAD, PLACES = 70.0, 10.0, 10


def drawn(key, options):
    """The problem at random true values."""
    keys = jax.random.split(key, 5)
    problem = structure.problem(**options)
    crystal = problem.forward.crystal
    size = jax.random.uniform(keys[0], (), minval=0.05, maxval=0.1)
    occupancy = jax.random.uniform(keys[2], crystal.occupancy.shape, minval=0.3, maxval=1.0)
    gone = jnp.arange(len(occupancy)) % 4 == jax.random.randint(keys[3], (), 0, 4)
    spread = jax.random.uniform(keys[4], crystal.u_A2.shape, minval=-1.0, maxval=1.0)
    return problem.at(
        {
            "forward.crystal.shift_A": size * jax.random.normal(keys[1], crystal.shift_A.shape),
            "forward.crystal.occupancy": jnp.where(gone, occupancy, 1.0),
            "forward.crystal.u_A2": 0.006 * 1.3**spread,
        }
    )


def where(truth, kind: str):
    box = np.asarray(truth.forward.crystal.box_A)
    if kind == "stem":
        return structure.scan_of(box, PLACES, PLACES, REACH_MRAD, PIXEL_MRAD)
    return structure.example(jax.random.key(0), kind)[1]


def phonons(key, truth, x, options, moments: int):
    """Mean intensities of independent moments of vibration, of each place its own, on finer pixels
    and in thinner slices. Each comes with its opposite, so that the mean places are the true ones.
    """
    # an image is computed once, a scan for each place
    thin_A = 0.5 if options["kind"] == "hrtem" else 1.3
    fine = {"sampling_A": 0.1, "slice_A": thin_A, "moments": 12, "sets": 1}
    forward = structure.problem(**{**options, **fine}).at(truth.values()).forward
    crystal = forward.crystal

    def normal(key):
        half = jax.random.normal(key, (moments // 2, *crystal.normal.shape[2:]))
        return jnp.concatenate([half, -half])

    if options["kind"] == "hrtem":
        return eqx.tree_at(lambda f: f.crystal.normal, forward, normal(key)[None])(x)
    wavelength = optics.wavelength_A(forward.energy_keV)
    angles = optics.angles_mrad(crystal.shape, jnp.stack(crystal.sampling_A), wavelength)
    probe = optics.probe(angles, forward.semiangle_mrad, forward.aberrations_A, wavelength)
    rows, columns = (
        shares(a, b.ravel()) for a, b in zip((x.y_mrad, x.x_mrad), angles, strict=True)
    )

    @jax.jit
    def at(given):
        place, key = given
        wave = placed(probe, place[None], crystal.sampling_A)[0]

        def once(n):
            t = crystal.transmissions(n, forward.energy_keV)
            return rows @ diffraction(crystal.through(wave, t, forward.energy_keV)) @ columns.T

        return jnp.mean(jax.lax.map(once, normal(key)), 0)

    places = x.position_A.reshape(-1, 2)
    found = jax.lax.map(at, (places, jax.random.split(key, len(places))))
    return found.reshape(*x.position_A.shape[:2], *x.efficiency.shape)


def solved(truth, x, y, options, key) -> dict:
    began = time.perf_counter()
    solution = micjax.solve(structure, structure.problem(**options), x, y, key=key)
    seconds = time.perf_counter() - began
    draws = solution.laplace.sample(key, 2000)
    true, best = truth.values(), solution.problem.values()
    line = {
        "chi_squared_per_datum": solution.metrics["chi_squared_per_datum"],
        "seconds": round(seconds, 1),
    }
    for short in NAMES:
        name = f"forward.crystal.{short}"
        low, high = np.quantile(draws[name], [0.05, 0.95], axis=0)
        value = np.asarray(true[name])
        line[short] = {
            "truth": value.ravel().round(5).tolist(),
            "error": (np.asarray(best[name]) - value).ravel().round(6).tolist(),
            "half_width": ((high - low) / 2).ravel().round(6).tolist(),
        }
    if isinstance(x, Scan):
        moved = np.asarray(true["forward.crystal.shift_A"])
        peaks = structure.peak_shifts(truth, x, y) - moved
        line["peaks"] = peaks.ravel().round(6).tolist()
    return line


def table(lines: list[dict]) -> None:
    for kind, data in sorted({(r["kind"], r["data"]) for r in lines}):
        some = [r for r in lines if (r["kind"], r["data"]) == (kind, data)]
        chi2 = np.median([r["chi_squared_per_datum"] for r in some])
        seconds = np.median([r["seconds"] for r in some])
        print(
            f"{kind}, counts from {data}: {len(some)} repeats, {seconds:.0f} s each, chi^2 per "
            f"pixel {chi2:.2f} (medians)"
        )
        print(
            "quantity                   median |error|   90 %     worst     mean    covered at 90 %"
        )
        rows = {
            "shift_A, start": np.ravel([r["shift_A"]["truth"] for r in some]),
            "shift_A, peaks": np.ravel([r["peaks"] for r in some if "peaks" in r]),
        }
        wide = {}
        for name, part, title in PARTS:
            error, width = (np.array([r[name][k] for r in some]) for k in ("error", "half_width"))
            rows[title], wide[title] = error[:, part].ravel(), width[:, part].ravel()
        for title, errors in rows.items():
            size = np.abs(errors)
            if size.size:
                share = f"{np.sum(size < wide[title])} of {size.size}" if title in wide else ""
                print(
                    f"{title:<26} {np.median(size):>12.4f}   {np.quantile(size, 0.9):>7.4f}   "
                    f"{size.max():>7.4f}  {errors.mean():>7.4f}   {share:>14}".rstrip()
                )
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", choices=("stem", "hrtem"), default="stem")
    parser.add_argument("--data", choices=("model", "phonons"), default="model")
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    given = parser.parse_args()
    if given.table:
        return table([json.loads(line) for line in given.out.read_text().splitlines()])
    options = {"kind": given.kind, **given.options}
    for seed in range(given.first, given.first + given.repeats):
        truth_key, noise_key, moved_key, key = jax.random.split(jax.random.key(seed), 4)
        truth = drawn(truth_key, options)
        x = where(truth, given.kind)
        forward = truth.forward
        if given.data == "model":
            seen = forward(x)
        else:
            seen = phonons(moved_key, truth, x, options, given.moments)
        y = truth.noise(seen).sample(noise_key).astype(float)
        line = {"seed": seed, "kind": given.kind, "data": given.data}
        line = json.dumps(line | solved(truth, x, y, options, key))
        print(line[:200], flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")
    return None


if __name__ == "__main__":
    main()
