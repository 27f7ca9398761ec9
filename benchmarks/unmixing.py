"""Speed and memory of unmixing: counts, factorisations, phase maps, beside scikit-learn and espm.

    python benchmarks/unmixing.py [--quick] [--peers PYTHON] [--file CUBE] [--only PART ...]

One JSON object a line: name, value, unit, peer, peer_value, ratio = value / peer_value, note. Times
are CPU times on one core after a warm-up, the median of five. A peer makes a number of steps from
the same start, and our time is that to come as far: to its divergence, or to its residual of the
conditions of optimality. Peers run under their own interpreter (`--peers`, or the variable
UNMIXING_PEERS); without one they are skipped.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

if hasattr(os, "sched_setaffinity"):  # before JAX counts its threads
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import micjax
from micjax.physics.patches.local_spectra import LocalSpectra, over_strips, power_of
from micjax.physics.patches.mapping import PatchScale, encode_image
from micjax.physics.patches.polycrystal import polycrystal
from micjax.physics.patches.unmixing import counts, equivariant, factorisation
from micjax.physics.patches.windows import Hann
from micjax.problems import phase_map

SIDE = pathlib.Path(__file__).parent / "unmixing_peers" / "side.py"
PIXEL_A = 0.3125
SEEN = {"window_px": 64, "step_px": 8, "cell_A": 5.9, "k_max_perA": 0.8}


def seconds(call: Callable[[], object], calls: int = 5) -> tuple[float, str]:
    """The median CPU time of some calls after the first one, and their range."""
    call()
    taken = []
    for _ in range(calls):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return statistics.median(taken), f"{min(taken):.3g} to {max(taken):.3g} s in {calls} calls"


def row(name: str, value: float, unit: str, note: str, peer: str = "", of_peer=None) -> dict:
    ratio = None if of_peer is None else value / of_peer
    keys = ("name", "value", "unit", "peer", "peer_value", "ratio", "note")
    return dict(zip(keys, (name, value, unit, peer, of_peer, ratio, note), strict=True))


class Peers:
    def __init__(self, python: str | None):
        self.python = python

    def run(self, peer: str, x, w, h, steps: int) -> tuple[float, np.ndarray, np.ndarray] | None:
        """Its CPU time and its factors; None where it is not there."""
        if self.python is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = str(pathlib.Path(folder) / "start.npz")
            np.savez(file, x=x, w=w, h=h)
            command = [self.python, str(SIDE), peer, file, str(steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{peer}: skipped: {done.stderr.strip()[-300:]}", file=sys.stderr)
                return None
            with np.load(file + ".out.npz") as out:
                return json.loads(done.stdout.splitlines()[-1])["seconds"], out["w"], out["h"]


# --- counts ---------------------------------------------------------------------------------------


def xray_map(ny: int, nx: int, channels: int, per_pixel: float) -> np.ndarray:
    """Three phases, 3 % of the entries not zero: as an X-ray map is."""
    rng = np.random.default_rng(0)
    channel = np.arange(channels)
    lines = rng.uniform(0.0, 0.5, (3, 4)) * channels
    h = np.exp(-0.5 * ((channel - lines[..., None]) / (0.003 * channels)) ** 2).sum(axis=1)
    h += 0.03 * np.exp(-channel / (0.2 * channels))
    y, x = np.indices((ny, nx)) / max(ny, nx)
    w = np.stack([1.0 + 0 * x, (x > 0.4) * 2.0, (np.hypot(x - 0.5, y - 0.6) < 0.2) * 3.0], axis=-1)
    w = w.reshape(-1, 3) / w.sum(axis=-1).reshape(-1, 1)
    return rng.poisson(per_pixel * w @ (h / h.sum(axis=1, keepdims=True))).astype(np.float32)


def of_counts(peers: Peers, quick: bool, file: str | None) -> Iterator[dict]:
    if file is None:
        x = xray_map(30, 30, 300, 60.0) if quick else xray_map(80, 80, 1917, 112.0)
        told = f"made up, {x.shape[0]} x {x.shape[1]}"
    else:
        cube = np.asarray(micjax.io.read(file).data, np.float32)
        x = cube.reshape(-1, cube.shape[-1])
        told = f"{pathlib.Path(file).name}, {x.shape[0]} x {x.shape[1]}"
    rng, components = np.random.default_rng(1), 3
    level = np.sqrt(x.mean() / components)
    w = (level * rng.uniform(0.5, 1.5, (len(x), components))).astype(np.float32)
    h = (level * rng.uniform(0.5, 1.5, (components, x.shape[1]))).astype(np.float32)
    sparse, table = scipy.sparse.csr_array(x.astype(float)), counts.count_table(x)
    free = jnp.zeros(components, bool)

    def ours(steps: int):
        begun = jnp.asarray(w), jnp.asarray(h)
        factors = counts.factorise_counts(table, *begun, free, tolerance=0.0, steps=steps)
        return jax.block_until_ready(factors)

    def reached(steps: int) -> float:
        factors = ours(steps)
        return counts.divergence(sparse, *map(np.asarray, (factors.abundance, factors.template)))

    filled = f"{told}, {100 * np.mean(x > 0):.1f} % filled, {components} end members"
    for peer, steps in (("scikit-learn counts", 200), ("scikit-learn counts", 1000), ("espm", 30)):
        steps = min(steps, 20) if quick else steps
        done = peers.run(peer, x, w, h, steps)
        if done is None:
            continue
        theirs = counts.divergence(sparse, *map(np.asarray, done[1:]))
        few = next(s for s in range(1, 2000) if reached(s) <= theirs)
        taken, note = seconds(lambda few=few: ours(few))
        note = (
            f"{filled}; {steps} steps of the peer, divergence {theirs:.0f}; {few} of ours; {note}"
        )
        yield row("counts, equal divergence", taken, "s", note, peer, done[0])
    taken, note = seconds(lambda: ours(20))
    yield row("counts, 20 steps", taken, "s", f"{filled}; divergence {reached(20):.0f}; {note}")


# --- factorisation --------------------------------------------------------------------------------


def crystal(pixels: int, grains: int = 8, seed: int = 0):
    rng = np.random.default_rng(seed)
    lattices = phase_map.palladium_selenides()
    return polycrystal(rng, lattices, (pixels, pixels), grains=grains, electrons_per_px=60.0)


def of_factorisation(peers: Peers, quick: bool) -> Iterator[dict]:
    for pixels, components in ((512, 4), (1024, 4), (1024, 8)) if not quick else ((256, 3),):
        local = LocalSpectra(Hann(), 64, 8, PIXEL_A, 0.42)
        image = crystal(pixels, seed=100).image.astype(np.float32)
        spectra = np.sqrt(over_strips(local, image, None, power_of))
        x = spectra.reshape(-1, spectra.shape[-2] * spectra.shape[-1]).astype(np.float32)
        w, h = (np.asarray(v) for v in factorisation.start(jnp.asarray(x), components))
        data = jnp.asarray(x)
        for steps in (30, 60):  # 100 reach what single precision holds
            done = peers.run("scikit-learn", x, w, h, steps)
            if done is None:
                continue
            with jax.enable_x64(True):
                theirs = float(
                    factorisation.optimality(*(jnp.asarray(v, float) for v in (x, *done[1:])))
                )

            def ours(theirs=theirs, data=data, w=w, h=h):
                begun = jnp.asarray(w), jnp.asarray(h)
                return jax.block_until_ready(
                    factorisation.factorise(data, *begun, tolerance=theirs, steps=3000)
                )

            taken, note = seconds(ours)
            done_by = ours()
            note = (
                f"{x.shape[0]} x {x.shape[1]}, {components} end members, residual {theirs:.2g}, "
                f"{steps} steps of the peer, {int(done_by.steps)} of ours, of which "
                f"{int(done_by.passes)} with products of the data; {note}"
            )
            yield row("factorisation, equal residual", taken, "s", note, "scikit-learn", done[0])


# --- maps -----------------------------------------------------------------------------------------


def of_maps(peers: Peers, quick: bool) -> Iterator[dict]:
    pixels = 256 if quick else 1024
    image = crystal(pixels).image.astype(np.float32)
    options, x, y = phase_map.prepare(image, PIXEL_A, phases=2, **SEEN)
    problem = phase_map.problem(**options)
    polar, rng = problem.forward.polar, np.random.default_rng(0)

    def patches():
        """Templates, then phases, angles and weights of all patches."""
        rings = polar.above(y, 0.0)
        templates = equivariant.learn(rings, 2, rng, starts=2, trial_steps=4, steps=12).templates
        return encode_image(np.asarray(x.image), None, polar, templates, PatchScale(1.0, 0.05, 1.0))

    calls = 3 if quick else 5
    taken, note = seconds(patches, calls)
    count = (pixels - 64) // 8 + 1
    note = f"{count}^2 patches of 64 pixels, step 8, two phases; {note}"
    yield row(f"phases of patches, {pixels}^2", taken, "s", note)

    def whole():
        return micjax.solve(phase_map, problem, x, y, key=jax.random.key(0))

    taken, note = seconds(whole, 1 if quick else 3)
    yield row(f"phase map of every pixel, {pixels}^2", taken, "s", f"all stages; {note}")


def of_sizes(peers: Peers, quick: bool) -> Iterator[dict]:
    """Each size in a process of its own, whose largest memory is told."""
    patches = [(False, n) for n in ((256,) if quick else (512, 1024, 2048, 4096, 8192))]
    whole = [(True, n) for n in (() if quick else (1024, 2048, 4096))]
    for every_pixel, pixels in patches + whole:
        command = [sys.executable, __file__, "--one", str(pixels), *["--whole"] * every_pixel]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{pixels}: {done.stderr.strip()[-300:]}", file=sys.stderr)
            continue
        told = json.loads(done.stdout.splitlines()[-1])
        what = "phase map of every pixel" if every_pixel else "phases of patches"
        note = f"with compilation; {told['seconds']:.3g} CPU s, step 8"
        yield row(f"{what}, {pixels}^2, memory", told["MB"], "MB", note)


def one_size(pixels: int, every_pixel: bool) -> None:
    """Of one image of this size, a smaller one repeated: its patches, or all stages."""
    edge = min(pixels, 1024)
    image = np.tile(crystal(edge).image.astype(np.float32), (pixels // edge, pixels // edge))
    begun = time.process_time()
    options, x, y = phase_map.prepare(image, PIXEL_A, phases=2, **({} if every_pixel else SEEN))
    problem = phase_map.problem(**options)
    polar, rng = problem.forward.polar, np.random.default_rng(0)
    if every_pixel:
        micjax.solve(phase_map, problem, x, y, key=jax.random.key(0))
    else:
        learnt = equivariant.learn(polar.above(y, 0.0), 2, rng, starts=2, trial_steps=4, steps=12)
        encode_image(np.asarray(x.image), None, polar, learnt.templates, PatchScale(1.0, 0.05, 1.0))
    taken = time.process_time() - begun
    # not `ru_maxrss`, in which what the parent held counts as well
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(json.dumps({"seconds": taken, "MB": int(status["VmHWM"].split()[0]) / 1024}))


PARTS = {"factorisation": of_factorisation, "maps": of_maps, "sizes": of_sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", default=os.environ.get("UNMIXING_PEERS"))
    parser.add_argument("--file", help="a spectrum image in place of the made-up one")
    parser.add_argument("--only", nargs="+", choices=("counts", *PARTS), default=("counts", *PARTS))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return one_size(asked.one, asked.whole)
    if asked.peers is None:
        print("no peers: --peers PYTHON names their interpreter", file=sys.stderr)
    peers = Peers(asked.peers)
    print(f"# {platform.processor() or platform.machine()}, 1 core, float32", file=sys.stderr)
    for part in asked.only:
        rows = (
            of_counts(peers, asked.quick, asked.file)
            if part == "counts"
            else PARTS[part](peers, asked.quick)
        )
        for line in rows:
            print(json.dumps(line), flush=True)
    return None


if __name__ == "__main__":
    main()
