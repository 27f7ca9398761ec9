"""Right and fast on this device? One script, meant for a quarter of an hour with a card.

    python benchmarks/gpu.py [--quick]       # exits with 1 where a value is wrong
    python benchmarks/gpu.py --references    # in float64 on a CPU: writes gpu_references.npz

First what the device computes in single precision (a Gaussian process: in double), against
references that a CPU computed in double precision. Then how fast it is: medians of wall times after
a warm-up, and for the multislice the share of the bandwidth that a copy reaches on this device. One
JSON object a line: name, value, unit, peer, peer_value, ratio = value / peer_value, note. Needs the
package and its core dependencies.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

import micjax
from micjax.active.gp import process as gp
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import annulus
from micjax.physics.electrons.multislice import band_limit, multislice, propagate, transmission
from micjax.physics.electrons.pacbed import camera
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.stem import placed, scanned
from micjax.physics.tips.dilation import dilate, erode
from micjax.physics.tips.shapes import SphereCone
from micjax.problems import cbed, edge

REFERENCES = pathlib.Path(__file__).with_name("gpu_references.npz")
EDGE_A, ENERGY_KEV, SLICE_A = 3.905, 200.0, 3.905 / 2
NUMBERS = (38, 22, 8, 8, 8)
FRACTIONS = np.array(
    [(0, 0, 0.25), (0.5, 0.5, 0.75), (0.5, 0.5, 0.25), (0.5, 0, 0.75), (0, 0.5, 0.75)]
)
BARS = {  # of the largest error, relative to the largest value
    "dilation": 1e-6,
    "erosion": 1e-6,
    "exit wave": 2e-5,
    "STEM": 2e-5,
    "gradient of a multislice": 1e-4,
    "Gaussian process": 1e-7,  # its hyper-parameters are rounded to single precision
    "fit": 1e-3,
    "gradient of a CBED problem": 1e-3,
}

# --- what is computed -----------------------------------------------------------------------------


def slab(pixels: int, cells: int, thick: int):
    """The potential of strontium titanate along [001], and Å a pixel."""
    atoms = Atoms(NUMBERS, EDGE_A * FRACTIONS, (EDGE_A,) * 3).repeated(cells, cells, thick)
    potential = potential_VA(atoms, (pixels, pixels), np.full(2 * thick, SLICE_A))
    return potential, (cells * EDGE_A / pixels,) * 2


def probe_of(pixels: int, sampling):
    wavelength = optics.wavelength_A(ENERGY_KEV)
    angles = optics.angles_mrad((pixels, pixels), np.asarray(sampling), wavelength)
    return angles, optics.probe(angles, 21.4, {"C10": 50.0, "C30": 1e4}, wavelength)


def surface_and_tip(pixels: int, width: int):
    rng = np.random.default_rng(0)
    surface = jnp.asarray(np.cumsum(rng.normal(size=(pixels, pixels)), axis=1), float)
    return surface, SphereCone(8.0, 20.0, pixel_nm=1.0, size=width)()


def values() -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of each check; single precision unless JAX has been told otherwise."""
    surface, tip = surface_and_tip(64, 15)
    yield "dilation", jax.jit(dilate)(surface, tip)
    yield "erosion", jax.jit(erode)(surface, tip)

    potential, sampling = slab(64, 2, 4)
    angles, probe = probe_of(64, sampling)

    @jax.jit
    def behind(waves, potential):
        return multislice(waves, potential, SLICE_A, sampling, ENERGY_KEV)

    yield "exit wave", behind(probe, potential)[::4, ::4]
    limit, ring = band_limit((64, 64), sampling), annulus(angles, 60.0, 120.0)[None]
    t = transmission(potential, ENERGY_KEV, limit)
    places = jnp.asarray(np.random.default_rng(1).uniform(0, EDGE_A, (16, 2)), float)
    scan = jax.jit(
        lambda p, s, t: scanned(p, s, t, SLICE_A, sampling, ENERGY_KEV, ring, limit=limit)
    )
    yield "STEM", scan(probe, places, t)

    def ring_of(potential):
        spectrum = jnp.fft.fft2(behind(probe, potential))
        return jnp.sum(jnp.abs(spectrum) ** 2 * ring[0]) / jnp.sum(jnp.abs(spectrum) ** 2)

    yield "gradient of a multislice", jax.jit(jax.grad(ring_of))(potential)[:, ::8, ::8]

    rng = np.random.default_rng(2)
    points = rng.uniform(0.0, 1.0, (30, 2))
    observed, y = gp.buffered(points, np.sin(5 * points[:, 0]) + points[:, 1])
    state = gp.condition(gp.process([0.0, 0.0], [1.0, 1.0]), observed, y)
    yield "Gaussian process", np.stack(gp.predict(state, rng.uniform(0.0, 1.0, (20, 2))))

    x = jnp.linspace(-4.0, 4.0, 60)
    y = jnp.asarray(edge.problem(1.2, 0.6).forward(x)) + 0.05 * jnp.sin(37.0 * x)
    best = micjax.fit(edge.problem(), x, y, LBFGS(), steps=200).problem.values()
    yield "fit", np.array([float(best[n]) for n in sorted(best)])

    along = 1.5 * np.arange(-10, 11)
    counts = jnp.asarray(rng.poisson(2e3, (21, 21)), float)
    problem = cbed.problem(30.0, most_A=60.0)
    slope = jax.jit(jax.grad(micjax.neg_log_joint))(
        problem.unconstrain(problem.values()), problem, camera(along, along), counts
    )
    yield "gradient of a CBED problem", np.concatenate([np.ravel(slope[n]) for n in sorted(slope)])


def checked(row: Callable) -> bool:
    """Whether all values are right; a row for each."""
    right = True
    with np.load(REFERENCES) as references:
        for name, value in values():
            reference, value = references[name], np.asarray(value)
            error = float(np.max(np.abs(value - reference)) / np.max(np.abs(reference)))
            held = value.shape == reference.shape and error <= BARS[name]
            row(f"{name}: largest error", error, "of the largest", "bar", BARS[name], held=held)
            right &= held
    return right


# --- how fast -------------------------------------------------------------------------------------


def seconds(function: Callable, *arguments, calls: int = 7) -> float:
    """The median of some calls of a compiled function."""
    made = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(made(*arguments))
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        jax.block_until_ready(made(*arguments))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def copied_GB_s(quick: bool) -> float:
    """Reading and writing, both counted."""
    array = jnp.zeros(2**24 if quick else 2**28, jnp.float32)
    return 2.0 * array.nbytes / seconds(lambda a: a + 1.0, array) / 1e9


def speeds(row: Callable, quick: bool) -> None:
    copy = copied_GB_s(quick)
    row("copy", copy, "GB/s")
    sizes = [(128, 8, 4)] if quick else [(128, 512, 16), (512, 64, 16), (1024, 16, 16)]
    for pixels, count, slices in sizes:
        cells = max(1, round(0.05 * pixels / EDGE_A))
        potential, sampling = slab(pixels, cells, slices // 2)
        limit = band_limit((pixels, pixels), sampling)
        _, probe = probe_of(pixels, sampling)
        places = jnp.asarray(np.random.default_rng(0).uniform(0, EDGE_A, (count, 2)), jnp.float32)
        waves = placed(probe, places, sampling)
        t = transmission(potential, ENERGY_KEV, limit)

        def through(w, t, sampling=sampling, limit=limit):
            return propagate(w, t, SLICE_A, sampling, ENERGY_KEV, limit=limit)

        took = seconds(through, waves, t)
        # two transforms at least read and write each wave once
        least_GB = 4.0 * waves.nbytes * slices / 1e9
        note = f"{count} waves, {slices} slices; {least_GB / took:.3g} GB/s if each FFT passes once"
        rate = count * slices / took
        row(
            f"multislice, {pixels}^2",
            rate,
            "waves x slices/s",
            "copy",
            rate * copy * took / least_GB,
            note,
        )

        def loss(v, w, sampling=sampling):
            return jnp.sum(jnp.abs(multislice(w, v, SLICE_A, sampling, ENERGY_KEV)) ** 4)

        few = waves[: max(1, count // 8)]
        took = seconds(jax.grad(loss), potential, few)
        note = f"{len(few)} waves, {slices} slices, forward and backward"
        row(f"gradient, {pixels}^2", len(few) * slices / took, "waves x slices/s", note=note)

    surface, tip = surface_and_tip(*((128, 15) if quick else (1024, 65)))
    took = seconds(dilate, surface, tip)
    row("dilation", surface.size * tip.size / took / 1e9, "1e9 comparisons/s")

    fits, steps = (32, 50) if quick else (4096, 200)
    x = jnp.linspace(-4.0, 4.0, 60)
    y = jnp.asarray(edge.problem(1.2, 0.6).forward(x))
    problem = edge.problem()
    starts = micjax.draw_starts(jax.random.key(0), problem, fits)
    for _ in range(2):  # the second time nothing is compiled
        begun = time.perf_counter()
        micjax.fit(problem, x, y, steps=steps, chunk=steps, starts=starts)
        took = time.perf_counter() - begun
    row(
        "fits side by side",
        fits / took,
        "fits/s",
        note=f"{fits} starts, {steps} steps of Adam each",
    )

    count = 64 if quick else 1024
    rng = np.random.default_rng(3)
    points = rng.uniform(0.0, 1.0, (count, 2))
    observed, y = gp.buffered(points, np.sin(5 * points[:, 0]))
    process = gp.process([0.0, 0.0], [1.0, 1.0])
    with jax.enable_x64(True):

        def loss(theta, problem, observed, y):
            return micjax.neg_log_joint(theta, problem, observed, y)

        theta = jax.tree.map(jnp.asarray, process.unconstrain(process.values()))
        took = seconds(jax.grad(loss), theta, process, observed, jnp.asarray(y))
    row("evidence of a Gaussian process and its gradient", 1e3 * took, "ms", note=f"{count} points")

    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if memory is not None:
        row("most memory of all of it", memory / 1e9, "GB")


# --- rows -----------------------------------------------------------------------------------------


def printer() -> Callable:
    device, begun = jax.devices()[0], time.perf_counter()
    chip = "CPU" if device.platform == "cpu" else device.device_kind
    where = f"{chip}, {os.cpu_count()} threads of the host, single precision, jax {jax.__version__}"

    def row(name, value, unit, peer=None, peer_value=None, note="", held=True):
        line = {"name": name, "value": float(f"{value:.4g}"), "unit": unit, "peer": peer}
        line["peer_value"] = None if peer_value is None else float(f"{peer_value:.4g}")
        line["ratio"] = float(f"{value / peer_value:.3g}") if peer_value else None
        told = [
            note,
            "" if held else "WRONG",
            f"{time.perf_counter() - begun:.0f} s since the start",
        ]
        print(json.dumps(line | {"note": "; ".join(filter(None, [*told, where]))}), flush=True)

    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--references", action="store_true", help="make them anew")
    given = parser.parse_args()
    if given.references:
        jax.config.update("jax_enable_x64", True)
        np.savez_compressed(REFERENCES, **dict(values()))
        return
    row = printer()
    right = checked(row)
    speeds(row, given.quick)
    sys.exit(not right)


if __name__ == "__main__":
    main()
