"""Speed of fits of maps: microseconds of CPU time a spectrum, errors and status included.

    python benchmarks/spectra.py [--quick] [--peers PYTHON] [--threads 1]

One JSON object a line: name, value, unit, peer, peer_value, ratio = value / peer_value, note. Times
are CPU times after compilation, the median of five; peers fit the first of the same spectra from
the same starts, one after the other (optimistix all at once, under vmap). "worse" is the share of
spectra with a sum of squares more than 1e-4 above the peer's. hyperspy, lmfit and NLSQ run under
their own interpreter (`--peers`); without one they are skipped.

Made-up spectra: a Gaussian on a floor (64 channels, 4 unknowns), three of them (128 channels, 10
unknowns), the response of an oscillator in two channels (80 frequencies, 4 unknowns).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PEER = Path(__file__).parent / "spectra_peers" / "fits.py"
CALLS = 5


def on_cores(threads: int) -> None:
    """Before JAX counts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-threads:]))


def drawn(case: str, n: int, seed: int = 0):
    """x, data, starts and the noise of `n` spectra."""
    rng = np.random.default_rng(seed)
    if case == "oscillator":
        x = np.linspace(300.0, 420.0, 80)
        truth = [rng.uniform(*r, n) for r in ((340, 380), (60, 200), (0.8, 1.2), (-1.0, 1.0))]
        f0, q, a, phase = (t[:, None] for t in truth)
        h = a * np.exp(1j * phase) * f0**2 / (f0**2 - x**2 + 1j * f0 * x / q)
        y = np.stack([h.real, h.imag], -1) + 2.0 * rng.normal(size=(n, len(x), 2))
        starts = np.stack(truth, -1) * rng.uniform(0.8, 1.2, (n, 4))
        starts[:, 0] = truth[0] + rng.normal(size=n)
        return x, y, starts, 2.0
    peaks = {"gaussian": [0.0], "three gaussians": [-4.0, 0.0, 4.0]}[case]
    x = np.linspace(-8.0, 8.0, 64 if len(peaks) == 1 else 128)
    of_peak = []
    for centre in peaks:
        height, width = rng.uniform(50.0, 150.0, n), rng.uniform(0.8, 1.4, n)
        of_peak += [height, centre + rng.uniform(-0.7, 0.7, n), width]
    truth = np.stack([*of_peak, rng.uniform(5.0, 15.0, n)], -1)
    y = predicted(case, x, truth) + 5.0 * rng.normal(size=(n, len(x)))
    starts = truth * rng.uniform(0.75, 1.3, truth.shape)
    starts[:, 1:-1:3] = truth[:, 1:-1:3] + 0.3 * rng.normal(size=(n, len(peaks)))
    return x, y, starts, 5.0


def predicted(case: str, x, p):
    """Of the unknowns in the last axis, by NumPy."""
    p = np.asarray(p)
    if case == "oscillator":
        f0, q, a, phase = (p[..., i, None] for i in range(4))
        h = a * np.exp(1j * phase) * f0**2 / (f0**2 - x**2 + 1j * f0 * x / q)
        return np.stack([h.real, h.imag], -1)
    out = p[..., -1, None] + np.zeros_like(x)
    for i in range(0, p.shape[-1] - 1, 3):
        h, c, w = (p[..., i + k, None] for k in range(3))
        out = out + h * np.exp(-0.5 * ((x - c) / w) ** 2)
    return out


def problem(case: str, sigma: float):
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    from micjax import Gaussian, InverseProblem, free, parameter
    from micjax.physics.probes.oscillator import Oscillator

    class Peaks(eqx.Module):
        height: jax.Array = parameter()
        centre: jax.Array = parameter()
        width: jax.Array = parameter()
        floor: jax.Array = parameter()

        def __call__(self, x):
            z = (x - self.centre[:, None]) / self.width[:, None]
            return jnp.sum(self.height[:, None] * jnp.exp(-0.5 * z**2), axis=0) + self.floor

    positive = dist.constraints.positive
    if case == "oscillator":
        names = {"f0_kHz": free(), "Q": free(positive), "amplitude": free(positive)}
        names |= {"phase_rad": free()}
        forward = Oscillator(360.0, 100.0)
    else:
        ones = np.ones(1 if case == "gaussian" else 3)
        forward = Peaks(ones, ones, ones, 1.0)
        names = {"height": free(), "centre": free(), "width": free(positive), "floor": free()}
    return InverseProblem(forward, Gaussian(sigma), {f"forward.{n}": p for n, p in names.items()})


def by_name(case: str, p) -> dict[str, np.ndarray]:
    if case == "oscillator":
        names = ("f0_kHz", "Q", "amplitude", "phase_rad")
        return {f"forward.{n}": p[..., i] for i, n in enumerate(names)}
    named = {n: p[..., i:-1:3] for i, n in enumerate(("height", "centre", "width"))}
    return {f"forward.{n}": v for n, v in (named | {"floor": p[..., -1]}).items()}


def in_a_row(case: str, values) -> np.ndarray:
    """The unknowns of `by_name` as they stand in a row of starts."""
    if case == "oscillator":
        return np.stack([values[n] for n in by_name(case, np.zeros(4))], -1)
    peaks = np.stack([values[f"forward.{n}"] for n in ("height", "centre", "width")], -1)
    return np.concatenate([peaks.reshape(len(peaks), -1), values["forward.floor"][:, None]], -1)


def squares(case: str, x, y, p) -> np.ndarray:
    return ((predicted(case, x, p) - y) ** 2).reshape(len(y), -1).sum(-1)


def timed(function, calls: int) -> list[float]:
    out = []
    for _ in range(calls):
        begun = time.process_time()
        function()
        out.append(time.process_time() - begun)
    return out


def of_scipy(case: str, x, y, starts) -> tuple[np.ndarray, float]:
    from scipy.optimize import curve_fit

    def flat(x, *p):
        return predicted(case, x, np.array(p)).ravel()

    begun, out = time.process_time(), []
    for data, start in zip(y, starts, strict=True):
        try:
            out.append(curve_fit(flat, x, data.ravel(), p0=start)[0])
        except RuntimeError:
            out.append(start)
    return np.array(out), (time.process_time() - begun) / len(y)


def of_optimistix(case: str, x, y, starts, calls: int) -> tuple[np.ndarray, float]:
    import jax
    import jax.numpy as jnp
    import optimistix

    base = problem(case, 1.0)
    solver = optimistix.LevenbergMarquardt(rtol=1e-5, atol=1e-5)

    def fit(data, start):
        def residual(values, data):
            return base.at(values).forward(jnp.asarray(x, data.dtype)) - data

        return optimistix.least_squares(
            residual, solver, start, args=data, max_steps=100, throw=False
        ).value

    run = jax.jit(jax.vmap(fit))
    data = jnp.asarray(y, jnp.float32)
    start = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), by_name(case, starts))
    values = jax.block_until_ready(run(data, start))
    taken = timed(lambda: jax.block_until_ready(run(data, start)), calls)
    return in_a_row(case, jax.tree.map(np.asarray, values)), statistics.median(taken) / len(y)


def of_others(python: str, case: str, x, y, starts) -> list[dict]:
    """hyperspy, lmfit and NLSQ, as far as they are there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spectra.npz"
        np.savez(path, x=x, y=y, starts=starts)
        told = subprocess.run(
            [python, str(PEER), case, str(path)], check=True, capture_output=True, text=True
        )
    return [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", help="an interpreter with hyperspy, lmfit, nlsq")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    on_cores(asked.threads)
    import jax

    from micjax.inference.maps.fit import fit_map

    many, few = (4096, 32) if asked.quick else (65536, 256)
    where = f"float32, {asked.threads} threads, {platform.machine()}, jax {jax.__version__}"
    cases = ["gaussian"] if asked.quick else ["gaussian", "three gaussians", "oscillator"]
    for case in cases:
        x, y, starts, sigma = drawn(case, many)
        data, base = y.astype(np.float32), problem(case, sigma)

        def ours(data=data, base=base, x=x, case=case, starts=starts):
            return fit_map(base, x, data, starts=by_name(case, starts[: len(data)]))

        compiling = timed(ours, 1)[0]
        taken = timed(ours, CALLS)
        fitted, value = ours(), statistics.median(taken) / many * 1e6
        note = f"{where}; {min(taken) / many * 1e6:.3g} to {max(taken) / many * 1e6:.3g} us; "
        note += f"compiled in {compiling - statistics.median(taken):.3g} s; {fitted.counts()}"
        own = squares(case, x, y, in_a_row(case, fitted.values))
        row = {"name": f"{case}, {data[0].size} numbers", "value": value, "unit": "us CPU a fit"}

        def tell(peer, seconds, theirs, row=row, own=own, value=value, note=note):
            worse = float(np.mean(own[: len(theirs)] > theirs * (1.0 + 1e-4)))
            told = {"peer": peer, "peer_value": 1e6 * seconds, "ratio": value / (1e6 * seconds)}
            print(json.dumps(row | told | {"note": f"{note}; worse: {worse}"}), flush=True)

        p, seconds = of_scipy(case, x, y[:few], starts[:few])
        tell("scipy curve_fit", seconds, squares(case, x, y[:few], p))
        some = min(many, 4096)
        p, seconds = of_optimistix(case, x, y[:some], starts[:some], CALLS)
        tell("vmap of optimistix", seconds, squares(case, x, y[:some], p))
        for told in of_others(asked.peers, case, x, y[:few], starts[:few]) if asked.peers else []:
            p = np.array(told["values"])
            tell(told["peer"], told["seconds"], squares(case, x, y[: len(p)], p))
    if not asked.peers:
        print(json.dumps({"name": "hyperspy, lmfit, NLSQ", "note": "skipped, no --peers"}))
    for n in [] if asked.quick else [1_000, 10_000, 100_000, 1_000_000]:
        x, y, starts, sigma = drawn("gaussian", n)
        data, values, base = (
            y.astype(np.float32),
            by_name("gaussian", starts),
            problem("gaussian", sigma),
        )
        del y
        fit_map(base, x, data[:200], starts=jax.tree.map(lambda a: a[:200], values))
        taken = timed(lambda d=data, v=values, b=base, x=x: fit_map(b, x, d, starts=v), 3)
        row = {"name": f"gaussian, {n} spectra", "value": statistics.median(taken[1:]) / n * 1e6}
        row |= {"unit": "us CPU a fit", "peer": "", "peer_value": None, "ratio": None}
        print(json.dumps(row | {"note": where}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
