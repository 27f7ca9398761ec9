"""Speed of the tip operators and of the feedback loop, beside Gwyddion, SciPy and plain Python.

    python benchmarks/tip.py [--quick] [--peers]

One JSON object a line: name, value, unit, peer, peer_value, ratio = value / peer_value, note. Times
are CPU times (all threads together, median of several calls after a warm-up), because wall times
depend on what else the machine does; wall times, spread and compile times stand in the note.

Gwyddion is called by `tip_peers/gwyddion.py` (Debian: `apt-get install libgwyddion2-0`). A peer
that is not there is skipped and named on stderr.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from micjax.physics.probes import lines as scanner
from micjax.physics.tips import dilation as tip

GWYDDION = pathlib.Path(__file__).parent / "tip_peers/gwyddion.py"


class Timing:
    """Medians of the CPU and wall time of some calls, in ms."""

    def __init__(self, call: Callable[[], object], calls: int, seconds: float = 1.0):
        call()
        cpu, wall, begin = [], [], time.perf_counter()
        # short calls are repeated for a while: the clock of the CPU time is coarse
        while len(cpu) < calls or (time.perf_counter() - begin < seconds and len(cpu) < 50):
            c, w = time.process_time(), time.perf_counter()
            call()
            cpu.append(1e3 * (time.process_time() - c))
            wall.append(1e3 * (time.perf_counter() - w))
        self.cpu, self.wall = statistics.median(cpu), statistics.median(wall)
        self.note = (
            f"CPU {min(cpu):.3g} to {max(cpu):.3g} ms in {len(cpu)} calls, wall {self.wall:.3g} ms"
        )


def compiled(function: Callable, *args):
    """The compiled function and the seconds that took."""
    begin = time.perf_counter()
    made = jax.jit(function).lower(*args).compile()
    return made, time.perf_counter() - begin


def chip() -> str:
    """The name of the processor, as Linux has it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    device = jax.devices()[0]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    what = "CPU" if device.platform == "cpu" else device.device_kind
    return f"{what}, {chip()}, {threads} threads, jax {jax.__version__}"


def example(size: int, width: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """A smooth rough surface (nm) and a tilted elliptic tip, which no trick separates."""
    field = scipy.ndimage.gaussian_filter(
        np.random.default_rng(0).standard_normal((size, size)), 3.0, mode="wrap"
    )
    y, x = np.mgrid[:width, :width] - width // 2
    heights = -(1.3 * y**2 + x**2 + 0.4 * y * x) / (width / 2)
    return (5 * field / field.std()).astype(dtype), heights.astype(dtype)


def load_gwyddion():
    """The module over libgwyprocess2, or None with the reason on stderr."""
    spec = importlib.util.spec_from_file_location("gwyddion", GWYDDION)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        print(f"gwyddion skipped: {error}", file=sys.stderr)
        return None
    module.set_threads(0)
    return module


class Bench:
    """Prints the rows; knows how often to call and which peers there are."""

    def __init__(self, calls=7, peers=False, seconds=1.0, out=None):
        self.calls, self.peers, self.seconds = calls, peers, seconds
        self.gwyddion = load_gwyddion() if peers else None
        self.out = out or sys.stdout
        self.machine = machine()
        self.peer_times: dict[str, Timing] = {}

    def time(self, call: Callable[[], object]) -> Timing:
        return Timing(lambda: jax.block_until_ready(call()), self.calls, self.seconds)

    def row(self, name, value, unit, peer=None, peer_value=None, note=""):
        ratio = None if peer_value is None else float(f"{value / peer_value:.3g}")
        short = None if peer_value is None else float(f"{peer_value:.4g}")
        line = {
            "name": name,
            "value": float(f"{value:.4g}"),
            "unit": unit,
            "peer": peer,
            "peer_value": short,
            "ratio": ratio,
            "note": f"{note}; {self.machine}",
        }
        print(json.dumps(line), file=self.out, flush=True)

    def rows(self, name, ours: Timing, peers: dict[str, Timing], note: str):
        """One line a peer, or one without a peer."""
        note = f"{ours.note}; {note}"
        for peer, theirs in peers.items():
            self.row(name, ours.cpu, "ms", peer, theirs.cpu, f"{note}; peer: {theirs.note}")
        if not peers:
            self.row(name, ours.cpu, "ms", note=note)

    def dilation_peers(self, surface, heights) -> dict[str, Timing]:
        """Forward dilations of others, each measured once for the same input."""
        found = {}
        key = f"{surface.shape} {heights.shape} {surface.dtype}"
        if self.gwyddion is not None:
            found["gwyddion"] = lambda: self.gwyddion.dilation(heights, surface)
        if self.peers:
            structure = heights[::-1, ::-1]
            found["scipy"] = lambda: scipy.ndimage.grey_dilation(
                surface, structure=structure, mode="nearest"
            )
        for peer, call in found.items():
            if f"{peer} {key}" not in self.peer_times:
                self.peer_times[f"{peer} {key}"] = Timing(call, min(self.calls, 5))
        return {peer: self.peer_times[f"{peer} {key}"] for peer in found}


def dilation(bench: Bench, size: int, width: int, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        surface, heights = example(size, width, dtype)
        args = jnp.asarray(surface), jnp.asarray(heights)
        call, seconds = compiled(lambda s, t: tip.dilate(s, t, "replicate"), *args)
        ours = bench.time(lambda: call(*args))
    bench.rows(
        f"dilate {size}x{size}, tip {width}x{width}, {dtype}",
        ours,
        bench.dilation_peers(surface, heights),
        f"compile {seconds:.2f} s",
    )


def _sum_of_squares(surface, heights):
    return jnp.sum(tip.dilate(surface, heights, "replicate") ** 2)


def gradient(bench: Bench, size: int, width: int) -> None:
    """Forward and backward together, beside the forward alone of the others."""
    surface, heights = example(size, width, "float32")
    args = jnp.asarray(surface), jnp.asarray(heights)
    call, seconds = compiled(jax.value_and_grad(_sum_of_squares, (0, 1)), *args)
    name = f"dilate, forward and gradient, {size}x{size}, tip {width}x{width}, float32"
    peers = {f"{k}, forward only": v for k, v in bench.dilation_peers(surface, heights).items()}
    bench.rows(name, bench.time(lambda: call(*args)), peers, f"compile {seconds:.2f} s")
    memory = call.memory_analysis()
    if memory is not None:
        scratch = memory.temp_size_in_bytes / 2**20
        bench.row(f"scratch memory of: {name}", scratch, "MiB", note="bar at 512 and 65: 16 MiB")


def certainty(bench: Bench, size: int, width: int) -> None:
    surface, heights = example(size, width, "float32")
    image = tip.dilate(jnp.asarray(surface), jnp.asarray(heights), "replicate")
    args = image, jnp.asarray(heights)
    call, seconds = compiled(tip.certain, *args)
    peers = {}
    if bench.gwyddion is not None:
        wide = np.asarray(image, np.float64)
        peers["gwyddion cmap"] = Timing(lambda: bench.gwyddion.cmap(heights, wide), bench.calls)
    bench.rows(
        f"certain {size}x{size}, tip {width}x{width}, float32",
        bench.time(lambda: call(*args)),
        peers,
        f"erosion included; compile {seconds:.2f} s",
    )


def batch(bench: Bench, frames: int, size: int, width: int) -> None:
    """All frames in one vmap beside one compiled call a frame."""
    surface, heights = example(size, width, "float32")
    stack = jnp.stack([jnp.roll(jnp.asarray(surface), k, 0) for k in range(frames)])
    heights = jnp.asarray(heights)
    together, seconds = compiled(jax.vmap(tip.dilate, (0, None)), stack, heights)
    single, _ = compiled(tip.dilate, stack[0], heights)
    singles = list(stack)
    bench.rows(
        f"vmap over {frames} frames {size}x{size}, tip {width}x{width}, float32",
        bench.time(lambda: together(stack, heights)),
        {"loop over frames": bench.time(lambda: [single(s, heights) for s in singles])},
        f"compile {seconds:.2f} s",
    )


def soft(bench: Bench, size: int, width: int) -> None:
    surface, heights = (jnp.asarray(a) for a in example(size, width, "float32"))
    exact, _ = compiled(tip.dilate, surface, heights)
    call, seconds = compiled(lambda s, t: tip.soft_dilate(s, t, 0.3), surface, heights)
    bench.rows(
        f"soft_dilate {size}x{size}, tip {width}x{width}, float32",
        bench.time(lambda: call(surface, heights)),
        {"dilate": bench.time(lambda: exact(surface, heights))},
        f"compile {seconds:.2f} s",
    )


def widths(bench: Bench, size: int, candidates) -> None:
    """Time a surface and tip pixel over the tip width: does the block of columns leave a cliff?"""
    for width in candidates:
        surface, heights = (jnp.asarray(a) for a in example(size, width, "float32"))
        call, seconds = compiled(tip.dilate, surface, heights)
        ours = bench.time(lambda call=call, s=surface, t=heights: call(s, t))
        bench.row(
            f"dilate {size}x{size} per surface and tip pixel, width {width}, float32",
            1e9 * ours.cpu / (size * width) ** 2,
            "ps",
            note=f"{ours.note}; compile {seconds:.2f} s",
        )


def python_feedback(height, proportional: float, integral: float) -> list[list[float]]:
    """The loop of `scanner.feedback` in plain Python: trace and retrace of each line."""
    lines = []
    for heights in height:
        z, before, out = heights[0], 0.0, []
        there = range(len(heights))
        for run in (there, reversed(there)):
            for x in run:
                out.append(z)
                e = heights[x] - z
                z, before = z + integral * e + proportional * (e - before), e
        lines.append(out)
    return lines


def feedback(bench: Bench, size: int, lines: int) -> None:
    """Beside the loop over NumPy elements, as one writes it, and over lists, as fast as it gets."""
    height, _ = example(size, 3, "float32")
    args = (jnp.asarray(height),)
    call, seconds = compiled(lambda h: scanner.feedback(h, 0.1, 0.5), *args)
    ours = bench.time(lambda: call(*args))
    for peer, data in (("NumPy elements", height[:lines]), ("lists", height[:lines].tolist())):
        # not bench.time: waiting for jax would walk over the list of numbers
        loop = functools.partial(python_feedback, data, 0.1, 0.5)
        theirs = Timing(loop, bench.calls, bench.seconds)
        bench.row(
            f"feedback, trace and retrace, {size}x{size}, float32",
            ours.cpu,
            "ms",
            f"Python loop over {peer}",
            theirs.cpu * size / lines,
            f"{ours.note}; compile {seconds:.2f} s; peer: {theirs.note}, {lines} of {size} lines",
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, within a minute")
    parser.add_argument("--peers", action="store_true", help="measure Gwyddion and SciPy as well")
    given = parser.parse_args(arguments)
    bench = Bench(3 if given.quick else 7, given.peers)
    tips = (17, 33) if given.quick else (17, 33, 65)
    for width in tips:
        dilation(bench, 512, width, "float32")
    dilation(bench, 512, 33, "float64")
    for width in tips:
        gradient(bench, 512, width)
    for width in tips[:2]:
        certainty(bench, 512, width)
    batch(bench, 8, 256, 17)
    soft(bench, 512, 17)
    feedback(bench, 512, 32)
    if not given.quick:
        widths(bench, 512, (9, 15, 17, 25, 31, 33, 47, 49, 63))


if __name__ == "__main__":
    main()
