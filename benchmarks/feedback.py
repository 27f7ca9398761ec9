"""Speed of the height loop beside plain Python, NumPy and numba; its gains from two directions.

    python benchmarks/feedback.py [--quick]

One JSON object a line, as `tip.py` prints them: CPU times, medians after a warm-up. A peer that is
not installed is skipped and named on stderr.
"""

import argparse
import collections
import functools
import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import scipy

import micjax
from micjax.physics.probes.loop import WINDOW, follow
from micjax.problems import feedback as problem

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tip import Bench, Timing, compiled  # noqa: E402

SAMPLES = 4000  # of a line
GAINS = (0.05, 1e-3, 2.0)  # proportional, integral, set point (nm)


def scan(lines: int, pixels: int) -> np.ndarray:
    """A smooth rough surface (nm), each line of pixels resampled to 4,000."""
    rng = np.random.default_rng(0)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((lines, pixels)), 3.0, mode="wrap")
    at = np.linspace(0, pixels - 1, SAMPLES)
    return np.stack([np.interp(at, np.arange(pixels), line) for line in 20 * field / field.std()])


# --- the same recursion, as others would write it ------------------------------------------------


def rolled(height: np.ndarray, proportional, integral, set_point) -> np.ndarray:
    """Sample by sample over a buffer of errors that is rolled and summed, as in DTMicroscope."""
    out = np.empty_like(height)
    for line, z in zip(height, out, strict=True):
        errors = np.zeros(WINDOW)
        z[0] = line[0]
        for i in range(len(line) - 1):
            error = z[i] - line[i] - set_point
            errors = np.roll(errors, -1)
            errors[-1] = error
            pulled = z[i] - proportional * error - integral * np.sum(errors)
            z[i + 1] = max(line[i + 1], pulled)
    return out


def lists(height: list[list[float]], proportional, integral, set_point) -> list[list[float]]:
    """As fast as plain Python gets: floats, and a running sum."""
    out = []
    for line in height:
        errors, total, z, path = collections.deque([0.0] * WINDOW), 0.0, line[0], [line[0]]
        for i in range(len(line) - 1):
            error = z - line[i] - set_point
            errors.append(error)
            total += error - errors.popleft()
            z = max(line[i + 1], z - proportional * error - integral * total)
            path.append(z)
        out.append(path)
    return out


def over_lines(columns: np.ndarray, proportional, integral, set_point) -> np.ndarray:
    """A Python loop over samples `[samples, lines]`, each step of it NumPy over all lines."""
    out, ring = np.empty_like(columns), np.zeros((WINDOW, columns.shape[1]), columns.dtype)
    total = np.zeros_like(columns[0])
    out[0] = columns[0]
    for i in range(len(columns) - 1):
        error = out[i] - columns[i] - set_point
        total += error - ring[i % WINDOW]
        ring[i % WINDOW] = error
        pulled = out[i] - proportional * error - integral * total
        np.maximum(columns[i + 1], pulled, out=out[i + 1])
    return out


def one_by_one(height, out, proportional, integral, set_point, window):
    """For numba."""
    for n in range(height.shape[0]):
        ring, total, z = np.zeros(window), 0.0, height[n, 0]
        out[n, 0] = z
        for i in range(height.shape[1] - 1):
            error = z - height[n, i] - set_point
            total += error - ring[i % window]
            ring[i % window] = error
            z = max(height[n, i + 1], z - proportional * error - integral * total)
            out[n, i + 1] = z


def numba_loop():
    """`one_by_one` compiled, or None with the reason on stderr."""
    if importlib.util.find_spec("numba") is None:
        print("numba skipped: it is not installed", file=sys.stderr)
        return None
    import numba

    return numba.njit(one_by_one)


# --- what is measured ---------------------------------------------------------------------------


def speed(bench: Bench, lines: int, timed: int, dtype: str) -> None:
    """All lines by us, NumPy and numba; `timed` of them by the loops of Python, scaled."""
    with jax.enable_x64(True):
        height = scan(lines, 256).astype(dtype)
        args = (jnp.asarray(height),)
        call, seconds = compiled(lambda h: follow(h, *GAINS), *args)
        ours, found = bench.time(lambda: call(*args)), np.asarray(call(*args))
    some, columns = height[:timed], np.ascontiguousarray(height.T)
    name, note = f"feedback, {lines} lines of {SAMPLES} samples, {dtype}", ours.note
    note += f"; compile {seconds:.2f} s"
    for peer, loop in {
        "Python loop, buffer rolled and summed": functools.partial(rolled, some, *GAINS),
        "Python loop over lists, running sum": functools.partial(lists, some.tolist(), *GAINS),
    }.items():
        theirs = Timing(loop, 3, 0.0)
        said = f"{note}; peer: {theirs.note}, {timed} of {lines} lines, scaled"
        bench.row(name, ours.cpu, "ms", peer, theirs.cpu * lines / timed, said)
    theirs = {"NumPy over lines": Timing(lambda: over_lines(columns, *GAINS), bench.calls)}
    loop, out = numba_loop(), np.empty_like(height)
    if loop is not None:
        theirs["numba, one thread"] = Timing(lambda: loop(height, out, *GAINS, WINDOW), bench.calls)
    bench.rows(name, ours, theirs, f"compile {seconds:.2f} s")
    exact = rolled(some.astype(float), *GAINS)
    worst = np.abs(found[:timed] - exact).max() / np.ptp(exact)
    bench.row(f"largest difference: {name}", worst, "of the range", note=f"{timed} lines, bar 1e-6")


def gradient(bench: Bench, lines: int, dtype: str) -> None:
    """Forward and backward to the surface and both gains."""
    with jax.enable_x64(True):
        height = jnp.asarray(scan(lines, 256).astype(dtype))
        gains = jnp.asarray(GAINS, dtype)

        def error(height, gains):
            return jnp.mean((follow(height, *gains) - height - gains[2]) ** 2)

        call, seconds = compiled(jax.value_and_grad(error, (0, 1)), height, gains)
        ours = bench.time(lambda: call(height, gains))
    name = f"feedback, forward and gradient, {lines} lines of {SAMPLES} samples, {dtype}"
    bench.rows(name, ours, {}, f"compile {seconds:.2f} s")


def gains(bench: Bench, seeds: int) -> None:
    """The worst of the examples of `micjax.problems.feedback`, and the surface beside it."""
    worst, surface = collections.defaultdict(list), collections.defaultdict(list)
    with jax.enable_x64(True):
        for seed in range(seeds):
            truth, x, y = problem.example(jax.random.key(seed))
            solution = micjax.solve(problem, problem.problem(), x, y, key=jax.random.key(0))
            for name in ("forward.proportional", "forward.integral"):
                true, found = (float(p.values()[name]) for p in (truth, solution.problem))
                worst[name].append(abs(found / true - 1.0))
            for row in problem.compare(solution, x, y, truth):
                surface[row["surface"]].append(row["rms error (nm)"])
    for name, errors in worst.items():
        note = f"float64, {seeds} seeds, median {100 * np.median(errors):.2g} %, bar 5 %"
        what = f"{name.partition('.')[2]} gain from trace and retrace, largest error"
        bench.row(what, 100 * max(errors), "%", note=note)
    ours = surface.pop("micjax")
    for peer, errors in surface.items():
        note = f"float64, {seeds} seeds, largest {max(ours):.3g}; peer {max(errors):.3g}"
        value, theirs = np.median(ours), np.median(errors)
        bench.row("surface from trace and retrace, rms error", value, "nm", peer, theirs, note)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer lines and seeds")
    given = parser.parse_args(arguments)
    bench = Bench(3 if given.quick else 15)
    timed = 2 if given.quick else 16
    for dtype in ("float64", "float32"):
        speed(bench, 256, timed, dtype)
        gradient(bench, 256, dtype)
    gains(bench, 1 if given.quick else 12)


if __name__ == "__main__":
    main()
