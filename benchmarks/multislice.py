"""Speed and memory of the multislice, beside abTEM.

    python benchmarks/multislice.py [--quick] [--peers ABTEM_PYTHON] [--only PART ...]
    python benchmarks/multislice.py --table benchmarks/results/multislice-amd-epyc.jsonl

One JSON object a line: name, value, unit, peer, peer_value, ratio = value / peer_value, note.
abTEM runs in its own interpreter (`--peers` or the variable ABTEM_PYTHON) and measures when it is
told to: the sides take turns, call by call, on the same one core. Without it abTEM is skipped and
named on stderr. Times are CPU times, medians after a warm-up; of several devices they are wall
times, on as many cores as the rows say. All sides are in single precision and keep the memory that
they free.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1"))
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
if hasattr(os, "sched_setaffinity"):  # before JAX counts the cores
    os.sched_setaffinity(0, CORES[-1:])
SIDES = pathlib.Path(__file__).parent / "multislice_peers"
sys.path.insert(0, str(SIDES))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import specimen  # noqa: E402
from specimen import EDGE_A, ENERGY_KEV, SEMIANGLE_MRAD, SLICE_A  # noqa: E402

from micjax.physics.electrons import optics, prism  # noqa: E402
from micjax.physics.electrons.detectors import annulus, diffraction  # noqa: E402
from micjax.physics.electrons.multislice import band_limit, multislice, propagate, transmission  # noqa: E402
from micjax.physics.electrons.potentials.layers import Atoms, layers, potential_VA  # noqa: E402
from micjax.physics.electrons.stem import placed, scanned  # noqa: E402

Call = Callable[[], float]  # seconds
# pixels, waves, slices; beside the powers of two sizes that the FFT of XLA does better on a CPU
SIZES = [(512, b, 10) for b in (1, 2, 4, 8, 16)]
SIZES += [(n, b, 10) for n in (128, 256, 1024) for b in (1, 8)]
SIZES += [(512, 1, s) for s in (20, 40)]
SIZES += [(n, b, 10) for n in (500, 1000) for b in (1, 8)]


class Side:
    """Another program at work on one task."""

    def __init__(self, python: str, program: str, *task):
        command = [python, str(SIDES / program), *map(str, task)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process, self.answer = subprocess.Popen(command, **pipes), {}

    def __call__(self) -> float:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"no answer from {' '.join(self.process.args)}")
        self.answer = json.loads(line)
        return self.answer["s"]

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def timed(function: Callable, *args) -> Call:
    """A compiled function as a measurement."""
    made = jax.jit(function).lower(*args).compile()
    jax.block_until_ready(made(*args))

    def once() -> float:
        began = time.process_time()
        jax.block_until_ready(made(*args))
        return time.process_time() - began

    return once


class Bench:
    """Lets the sides take turns and prints the rows."""

    def __init__(self, abtem: str | None, quick: bool, on: str = "1 core, 1 thread"):
        self.abtem, self.quick = abtem, quick
        info = pathlib.Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        chip = names[0] if names else platform.machine()
        self.machine = f"{chip}, {on}, float32, jax {jax.__version__}"

    @contextlib.contextmanager
    def peer(self, *task):
        """{"abTEM": its measurement}, or nothing where there is none."""
        if self.abtem is None:
            yield {}
            return
        side = Side(self.abtem, "abtem_side.py", *task)
        try:
            yield {"abTEM": side}
        finally:
            side.close()

    def turns(self, calls: dict[str, Call], repeats: int) -> dict[str, list[float]]:
        """ms of each, call by call in turns."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(2 if self.quick else repeats):
            for name, call in calls.items():
                found[name].append(1e3 * call())
        return found

    def row(self, name, value, unit, peer=None, peer_value=None, note=""):
        line = {
            "name": name,
            "value": short(value),
            "unit": unit,
            "peer": peer,
            "peer_value": short(peer_value),
            "ratio": short(value / peer_value, 3) if peer_value else None,
            "note": "; ".join(filter(None, [note, self.machine])),
        }
        print(json.dumps(line, ensure_ascii=False), flush=True)

    def time_row(
        self, name, ours, theirs=None, per=1.0, unit="ms", peer="abTEM", bar=None, note=""
    ):
        """Medians of times in ms, divided by `per`."""
        mine = [t / per for t in ours]
        other = [t / per for t in theirs] if theirs else None
        notes = [f"bar: {bar}" if bar else "", note, spread(mine, unit)]
        notes += [f"{peer}: {spread(other, unit)}"] if other else []
        theirs = statistics.median(other) if other else None
        note = "; ".join(filter(None, notes))
        self.row(name, statistics.median(mine), unit, peer if other else None, theirs, note)


def short(value, digits: int = 4):
    return None if value is None else float(f"{value:.{digits}g}")


def spread(times: list[float], unit: str) -> str:
    return f"{min(times):.3g} to {max(times):.3g} {unit} in {len(times)} calls"


# --- the specimen -------------------------------------------------------------------------------


def crystal(cells: int, thick: int) -> tuple[Atoms, np.ndarray]:
    """Atoms and thicknesses of the slices."""
    cell = Atoms(specimen.NUMBERS, EDGE_A * specimen.FRACTIONS, (EDGE_A,) * 3)
    return cell.repeated(cells, cells, thick), np.full(2 * thick, SLICE_A)


def slab(pixels: int, slices: int):
    """The potential of some slices and Å a pixel."""
    cells = specimen.cells_across(pixels)
    atoms, thickness = crystal(cells, slices // 2)
    return potential_VA(atoms, (pixels, pixels), thickness), (cells * EDGE_A / pixels,) * 2


def waves_in(pixels: int, count: int, sampling):
    shape, wavelength = (pixels, pixels), optics.wavelength_A(ENERGY_KEV)
    if count == 1:
        return jnp.ones((1, *shape), jnp.complex64)
    angles = optics.angles_mrad(shape, np.asarray(sampling), wavelength)
    starts = specimen.beam_starts_A(count, specimen.cells_across(pixels))
    probe = optics.probe(angles, SEMIANGLE_MRAD, {}, wavelength)
    return placed(probe, jnp.asarray(starts[:, ::-1], jnp.float32), sampling)


# --- the parts ----------------------------------------------------------------------------------


def waves(bench: Bench) -> None:
    """One wave through one slice, in two ways of use; scaling with pixels, batch and slices."""
    bars = {(512, 1): 0.5, (512, 8): 0.8, (512, 16): 0.8}
    for pixels, count, slices in [(256, 8, 10)] if bench.quick else SIZES:
        potential, sampling = slab(pixels, slices)
        limit = band_limit(potential.shape[1:], sampling)
        start = waves_in(pixels, count, sampling)
        t = transmission(potential, ENERGY_KEV, limit)
        ways = {
            "multislice": timed(
                lambda w, v, s=sampling: multislice(w, v, SLICE_A, s, ENERGY_KEV), start, potential
            ),
            "propagate": timed(
                lambda w, t, s=sampling, a=limit: propagate(w, t, SLICE_A, s, ENERGY_KEV, limit=a),
                start,
                t,
            ),
        }
        with bench.peer("wave", pixels, count, slices) as peer:
            found = bench.turns(ways | peer, 9 if pixels < 1024 else 5)
        of = f"one wave, one slice, {pixels}^2, batch {count}, {slices} slices"
        notes = {
            "multislice": "from a potential, as abTEM",
            "propagate": "through transmissions computed before; abTEM has no such way",
        }
        for way, note in notes.items():
            bar = bars.get((pixels, count)) if slices == 10 else None
            theirs = found.get("abTEM")
            bench.time_row(f"{way}, {of}", found[way], theirs, slices * count, bar=bar, note=note)


def potentials(bench: Bench) -> None:
    for pixels in (256,) if bench.quick else (256, 512, 1024):
        cells = specimen.cells_across(pixels)
        atoms, thickness = crystal(cells, 5)
        slices = layers(atoms, thickness)
        ours = timed(
            lambda a, n=pixels, dz=thickness, s=slices: potential_VA(a, (n, n), dz, slices=s),
            atoms,
        )
        with bench.peer("potential", pixels, 10) as peer:
            found = bench.turns({"micjax": ours} | peer, 9)
        name = f"potential of a slice, {pixels}^2, {len(atoms.numbers) / 10:.0f} atoms"
        bar = 0.8 if pixels == 512 else None
        note = "ours the exact structure factor, abTEM its infinite projection"
        bench.time_row(name, found["micjax"], found.get("abTEM"), 10, bar=bar, note=note)


def brightness(waves, potential, sampling, weights, memory, limited):
    after = multislice(
        waves, potential, SLICE_A, sampling, ENERGY_KEV, memory=memory, limited=limited
    )
    return jnp.sum(weights * diffraction(after))


def gradients(bench: Bench) -> None:
    """Value and gradient with respect to the potential over the value, and what it holds."""
    pixels = 128 if bench.quick else 512
    potential, sampling = slab(pixels, 10)
    weights = jnp.asarray(np.random.default_rng(0).uniform(size=(pixels, pixels)), jnp.float32)
    for count in (1,) if bench.quick else (1, 8):
        start = waves_in(pixels, count, sampling)
        for memory, limited in (("store", True), ("store", False), ("reversible", False)):

            def value(v, w, m=memory, l=limited):
                return brightness(w, v, sampling, weights, m, l)

            forward, both = (
                timed(value, potential, start),
                timed(jax.value_and_grad(value), potential, start),
            )
            found = bench.turns({"both": both, "forward": forward}, 9)
            name = f"value and gradient, {pixels}^2, batch {count}, memory {memory}"
            name += "" if limited else ", no band limit"
            bench.time_row(
                f"{name}, one wave, one slice",
                found["both"],
                found["forward"],
                10 * count,
                peer="forward",
                bar=3,
            )
    potential = jax.ShapeDtypeStruct((100, pixels, pixels), jnp.float32)
    start = jax.ShapeDtypeStruct((1, pixels, pixels), jnp.complex64)

    def held_MiB(memory):
        def value(v, w):
            return brightness(w, v, sampling, weights, memory, False)

        made = jax.jit(jax.value_and_grad(value)).lower(potential, start).compile()
        return made.memory_analysis().temp_size_in_bytes / 2**20

    stored, note = held_MiB("store"), "temporary memory; no band limit"
    for memory, bar in (("segment", ""), ("reversible", "bar: 1/15; ")):
        name = f"memory of a gradient, {pixels}^2, 100 slices, batch 1, {memory}"
        bench.row(name, held_MiB(memory), "MiB", "store", stored, bar + note)


def imaging(side: int, interpolation: int | None = None, projection: str = "exact"):
    """A function that makes a HAADF image, from the atoms on; with an interpolation by PRISM."""
    pixels, cells, thick = specimen.STEM.values()
    shape, sampling = (pixels, pixels), (cells * EDGE_A / pixels,) * 2
    atoms, thickness = crystal(cells, thick)
    slices = layers(atoms, thickness)
    places = np.stack(np.meshgrid(*2 * [specimen.scan_A(side)], indexing="ij"), -1)
    places = places.reshape(-1, 2).astype(np.float32)
    wavelength = optics.wavelength_A(ENERGY_KEV)
    if interpolation is not None:
        chosen = prism.beams(shape, sampling, SEMIANGLE_MRAD, ENERGY_KEV, interpolation)
    window = shape if interpolation is None else chosen.window

    @jax.jit
    def whole(atoms):
        potential = potential_VA(atoms, shape, thickness, projection=projection, slices=slices)
        limit = band_limit(shape, sampling)
        t = transmission(potential, ENERGY_KEV, limit)
        angles = optics.angles_mrad(window, np.asarray(sampling), wavelength)
        ring = annulus(angles, *specimen.HAADF_MRAD)
        if interpolation is None:
            probe = optics.probe(angles, SEMIANGLE_MRAD, {}, wavelength)
            return scanned(probe, places, t, SLICE_A, sampling, ENERGY_KEV, ring, limit=limit)
        matrix = prism.scattering_matrix(chosen, t, SLICE_A, sampling, ENERGY_KEV, limit=limit)
        weights = prism.probe_weights(chosen, sampling, SEMIANGLE_MRAD, {}, ENERGY_KEV)
        return prism.scanned(places, weights, matrix, chosen, sampling, ring)

    return lambda: np.asarray(whole(atoms)).reshape(side, side)


def images(bench: Bench) -> None:
    """A scan of 100 Å of SrTiO3 from nothing, with compilation and once more without."""
    side = 4 if bench.quick else 32
    for interpolation in (None, 1, 2):
        task = ("stem", side) if interpolation is None else ("prism", side, interpolation)
        made = {}

        def first(f=interpolation, made=made) -> float:
            jax.clear_caches()
            began = time.process_time()
            made["image"] = imaging(side, f)
            made["image"]()
            return time.process_time() - began

        def again(made=made) -> float:
            began = time.process_time()
            made["image"]()
            return time.process_time() - began

        with bench.peer(*task) as peer:
            found = bench.turns({"first": first, "again": again} | peer, 3)
            theirs = peer["abTEM"].answer["image"] if peer else None
        by = "multislice" if interpolation is None else f"PRISM, interpolation {interpolation}"
        name = f"HAADF image {side} x {side}, SrTiO3 101.5 Å, 256^2, {by}"
        for which, note, bar in (
            ("first", "compilation included", 0.5 if interpolation is None else None),
            ("again", "compiled before", None),
        ):
            note = f"from the atoms on, ours {note}, abTEM's numba compiled before"
            bench.time_row(
                f"{name}, {which}",
                found[which],
                found.get("abTEM"),
                1e3,
                unit="s",
                bar=bar,
                note=note,
            )
        if theirs is not None and interpolation != 2:  # its window has a coarser grid by default
            mine = imaging(side, interpolation, "abtem")()
            off = float(np.abs(mine / np.asarray(theirs) - 1.0).max())
            bench.row(
                f"{name}: largest relative difference from abTEM's",
                off,
                "",
                note="as abTEM projects",
            )


def several(bench: Bench) -> None:
    """Virtual devices that share the cores, and one that has them to itself: wall times."""
    if len(CORES) < 2:
        return print("devices skipped: one core", file=sys.stderr)
    cores, bench = ",".join(map(str, CORES[:2])), Bench(None, bench.quick, on="wall times")
    for task, name in {
        "scan": "scan of 64 probes, 256^2, 20 slices",
        "phonons": "mean over 8 moments of the atoms, 256^2, 20 slices",
    }.items():
        sides = {
            "1 device, 1 core": Side(sys.executable, "devices_side.py", task, 1, CORES[0]),
            "1 device, 2 cores": Side(sys.executable, "devices_side.py", task, 1, cores),
            "2 devices, 2 cores": Side(sys.executable, "devices_side.py", task, 2, cores),
        }
        found = bench.turns(sides, 15)
        for side in sides.values():
            side.close()
        two = found.pop("2 devices, 2 cores")
        for peer, times in found.items():
            bench.time_row(f"{name}, 2 devices, 2 cores", two, times, peer=peer)


PARTS = {
    "waves": waves,
    "potentials": potentials,
    "gradients": gradients,
    "images": images,
    "devices": several,
}


def interpreter(given: str | None) -> str | None:
    python = given or os.environ.get("ABTEM_PYTHON")
    if python and pathlib.Path(python).is_file():
        return python
    print(f"abTEM skipped: no interpreter {python or 'given'}", file=sys.stderr)
    return None


def table(lines: list[dict]) -> str:
    rows = ["| what | micjax | unit | peer | peer takes | ratio |", "|---|---|---|---|---|---|"]
    for line in lines:
        value, theirs, ratio = (
            "-" if line[k] is None else f"{line[k]:.3g}" for k in ("value", "peer_value", "ratio")
        )
        peer = line["peer"] or "-"
        rows.append(f"| {line['name']} | {value} | {line['unit']} | {peer} | {theirs} | {ratio} |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size, two calls")
    parser.add_argument("--peers", metavar="ABTEM_PYTHON", help="the interpreter that has abTEM")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--table", type=pathlib.Path, metavar="FILE", help="of lines printed")
    given = parser.parse_args(arguments)
    if given.table is not None:
        return print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
    specimen.keep_memory()
    bench = Bench(interpreter(given.peers), given.quick)
    for part in given.only or PARTS:
        PARTS[part](bench)


if __name__ == "__main__":
    main()
