"""One loop on three instruments: a recorded file, a twin made of a physical model, and Nanonis.

    python experiments/afm_twin/run.py [--seeds 10] [--points 60]     all of it, with the table
    python experiments/afm_twin/run.py --watch nanonis                one slow search, to look at

The topography of PTO_Funakubo0004.h5 (DTMicroscope; 3 um, 256 x 256) is searched for its highest
place. `Replay` answers with the nearest pixel of the file; `Simulated` draws from an inverse
problem, the surface between the pixels and 0.2 nm of noise; `Nanonis` speaks the controller's
protocol over TCP with a server on this machine, whose Z signal is the surface.

Beside the learner: random points, and a raster of the same number. Prints a table, writes
results.json beside this file.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from loop import learner, search

from micjax import InverseProblem, io
from micjax.active.campaign import RandomPolicy, Raster
from micjax.core.problem import parameter
from micjax.instruments import Axis, Instrument, Nanonis, Replay, Simulated
from micjax.instruments.testing import Controller, nanonis_server
from micjax.physics.noise import Gaussian

HERE = pathlib.Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data" / "afm" / "PTO_Funakubo0004.h5"
CHANNEL, NOISE_NM, RATE = "HeightRetrace", 0.2, 1e-6


class On(NamedTuple):
    """An instrument, and what it calls a height at a point."""

    device: Instrument
    mode: str
    channel: str


@functools.cache
def topography() -> tuple[np.ndarray, float]:
    """Heights in m above the lowest, and the width of a pixel in m."""
    field = io.read(DATA, CHANNEL)
    where = np.asarray(field.axes[0].values)
    return field.data - field.data.min(), float(where[1] - where[0])


# --- the three instruments -----------------------------------------------------------------------


@contextlib.contextmanager
def replay() -> Iterator[On]:
    yield On(Replay.of(DATA, [CHANNEL], rate=RATE), "pixel", CHANNEL)


class Surface(eqx.Module):
    """Heights between the pixels, bilinear; places as (y, x) in nm."""

    height_nm: Float[Array, "ny nx"] = parameter()
    pixel_nm: float = eqx.field(static=True)

    def __call__(self, place_nm: Float[Array, "n 2"]) -> Float[Array, "n"]:
        return jax.scipy.ndimage.map_coordinates(
            self.height_nm, list(place_nm.T / self.pixel_nm), order=1
        )


@contextlib.contextmanager
def simulated() -> Iterator[On]:
    heights, pixel = topography()
    problem = InverseProblem(
        Surface(jnp.asarray(heights * 1e9), pixel * 1e9),
        Gaussian(jnp.asarray(NOISE_NM)),
        {"forward.height_nm": dist.Normal(0.0, 100.0)},
    )
    end = pixel * (len(heights) - 1)
    device = Simulated(
        problem,
        {n: Axis("m", 0.0, end, rate=RATE) for n in ("y", "x")},
        jax.random.key(0),
        reads=lambda at: jnp.asarray([[at["y"], at["x"]]]) * 1e9,
        channel="height",
        unit="nm",
    )
    yield On(device, "measure", "height")


def height_m(x, y):
    """Of the nearest pixel."""
    heights, pixel = topography()
    ix, iy = (np.rint(np.asarray(v) / pixel).astype(int) for v in (x, y))
    return heights[iy, ix]


@contextlib.contextmanager
def nanonis() -> Iterator[On]:
    heights, pixel = topography()
    end = pixel * (len(heights) - 1)
    with nanonis_server(lambda: Controller(reach_m=end, height_m=height_m)) as (_, ports):
        ends = {"x": (0.0, end), "y": (0.0, end)}
        with Nanonis("127.0.0.1", ports, **ends, rate=RATE, signals=("Z (m)",)) as device:
            yield On(device, "signals", "Z")


INSTRUMENTS = {"replay": replay, "simulated": simulated, "nanonis": nanonis}


# --- what is compared ----------------------------------------------------------------------------


def policy(name: str, device: Instrument, seed: int, points: int):
    if name == "learner":
        return learner(device, seed)
    axes = {n: device.axes[n] for n in ("y", "x")}
    if name == "random":
        return RandomPolicy(axes, seed)
    rows = int(np.sqrt(points))
    return Raster(axes, {"y": rows, "x": points // rows})


def below_highest_nm(points: list[dict]) -> float:
    """How far the best place found lies below the highest one, in truth."""
    heights, pixel = topography()
    best = max(points, key=lambda p: p["height"])
    return 1e9 * float(heights.max() - heights[round(best["y"] / pixel), round(best["x"] / pixel)])


def compare(seeds: int, points: int) -> list[dict]:
    rows = []
    for name, instrument in INSTRUMENTS.items():
        for kind in ("raster", "random", "learner"):
            found = []
            for seed in range(1 if kind == "raster" else seeds):
                with instrument() as on, tempfile.TemporaryDirectory() as folder:
                    count = int(np.sqrt(points)) * (points // int(np.sqrt(points)))
                    here = count if kind == "raster" else points
                    chosen = policy(kind, on.device, seed, points)
                    place = pathlib.Path(folder) / "run"
                    measured = search(on.device, chosen, on.mode, on.channel, here, place)
                    found.append(below_highest_nm(measured))
            rows.append({"instrument": name, "policy": kind, "below_highest_nm": found})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    kinds = ("raster", "random", "learner")
    lines = [f"| instrument | {' | '.join(kinds)} |", "|---" * 4 + "|"]
    for name in INSTRUMENTS:
        cells = []
        for kind in kinds:
            (row,) = [r for r in rows if (r["instrument"], r["policy"]) == (name, kind)]
            values = row["below_highest_nm"]
            spread = f" ± {np.std(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


class Slow:
    """Somebody looks: every measurement takes a while."""

    def __init__(self, device: Instrument, seconds: float):
        self.instrument, self._seconds = device, seconds

    def __getattr__(self, name: str):
        return getattr(self.instrument, name)

    def acquire(self, mode, over=None):
        time.sleep(self._seconds)
        return self.instrument.acquire(mode, over)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--watch", choices=INSTRUMENTS, help="one search, a point each second")
    given = parser.parse_args()
    if given.watch:
        folder = pathlib.Path("runs") / f"afm-twin-{given.watch}"
        print(f"micjax watch {folder}", flush=True)
        with INSTRUMENTS[given.watch]() as on:
            slow = Slow(on.device, 1.0)
            search(slow, learner(on.device), on.mode, on.channel, given.points, folder)
        return
    rows = compare(given.seeds, given.points)
    (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
