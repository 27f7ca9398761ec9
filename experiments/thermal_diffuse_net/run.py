"""A network for the thermal diffuse part of CBED patterns, on compositions it never saw.

    python experiments/thermal_diffuse/run.py runs/learn.h5 --pixels 256 --configurations 32 \\
        --crystals 320
    python experiments/thermal_diffuse/run.py runs/test.h5 --pixels 256 --only test \\
        --configurations 512 --crystals 16
    python experiments/thermal_diffuse_net/run.py runs/learn.h5 runs/test.h5 --steps 2000
    python experiments/thermal_diffuse_net/run.py runs/learn.h5 runs/test.h5     # the shipped one

With --steps it learns from the crystals of the first file that are for training, is stopped by
those for validation, and writes network.h5. The crystals of the second file are looked at, and one
JSON line a prediction is printed; figure.png.
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import h5py
import jax
import jax.numpy as jnp
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "thermal_diffuse"))

import baselines  # noqa: E402
from crystals import Crystal, Settings  # noqa: E402
from model import (  # noqa: E402
    BEAM,
    FEW,
    OPTIONS,
    SAMPLES,
    beyond_law,
    foreknown,
    parts,
    smoothed,
    told,
    training,
)
from patterns import factors, moving, recorded  # noqa: E402

from micjax.nets.train import Schedule, best_network, train  # noqa: E402
from micjax.nets.weights import load_network, save_network  # noqa: E402
from micjax.report.figures import image_panel, new_figure  # noqa: E402

WEIGHTS = HERE / "network.h5"
CHUNK = 64  # patterns at once


def scores(total, diffuse, seen: dict) -> dict[str, float]:
    """Means over patterns: what the diffuse part is off by, relatively; rings; the whole."""
    wanted = seen["total"]
    off = np.abs(diffuse - seen["diffuse"]).sum((1, 2)) / seen["diffuse"].sum((1, 2))
    of_rings = np.abs(baselines.radial(total) / baselines.radial(wanted) - 1.0)
    flux = np.abs(total.sum((1, 2)) / wanted.sum((1, 2)) - 1.0)
    mse = ((total - wanted) ** 2).mean((1, 2)) / wanted.max((1, 2)) ** 2
    return {
        "diffuse_off": float(off.mean()),
        "rings_off": float(of_rings.mean()),
        "rings_worst": float(of_rings.mean(0).max()),
        "flux_off": float(flux.mean()),
        "mse_over_peak2": float(mse.mean()),
    }


def noise(data: h5py.File, which: np.ndarray, seen: dict) -> dict[str, float]:
    """Of the labels themselves: what their second half says otherwise than the whole, which is as
    large as the error of the whole."""
    half = json.loads(data.attrs["settings"])["configurations"] // 2
    total = 2.0 * baselines.whole(data, "total", which) - baselines.whole(
        data, "total_first", which
    )
    diffuse = (total - baselines.whole(data, "elastic_second", which)) * half / (half - 1)
    return scores(BEAM * total, BEAM * diffuse, seen)


def fitted(seen: dict, name: str) -> tuple[np.ndarray, np.ndarray]:
    """p exp(-B k^2) + c, B and c of the very pattern: the classical picture."""
    pattern = seen[name].astype(float)
    total = baselines.damped_and_flat(pattern, seen["total"].astype(float))
    return total, np.maximum(total - pattern, 0.0)


def known(seen: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Total and diffuse patterns that take no network."""
    nothing, elastic = np.zeros_like(seen["damped"]), seen["elastic"]
    single, few = seen["single"].sum(1), seen["samples"][:, :FEW].mean(1)
    smooth = np.asarray(smoothed(jnp.asarray(few)))
    return {
        "elastic, as it is": (elastic, nothing),
        "damped, as it is": (seen["damped"], nothing),
        "damped exp(-B k^2) + c, fitted to each": fitted(seen, "damped"),
        "elastic exp(-B k^2) + c, fitted to each": fitted(seen, "elastic"),
        "elastic + Einstein": (elastic + single, single),
        f"elastic + {FEW} coarse configurations": (elastic + few, few),
        f"elastic + {FEW} coarse configurations, smoothed": (elastic + smooth, smooth),
    }


def foretold(network, law, seen: dict) -> tuple[np.ndarray, np.ndarray]:
    apply = jax.jit(parts)
    pieces = [
        apply(network, law, {n: jnp.asarray(a[i : i + CHUNK]) for n, a in seen.items()})
        for i in range(0, len(seen["vector"]), CHUNK)
    ]
    elastic, diffuse = (np.concatenate([np.asarray(p[k]) for p in pieces]) for k in (0, 1))
    return elastic + diffuse, diffuse


def speed(network, law, data: h5py.File, crystals: int = 4) -> dict[str, float]:
    """CPU seconds of a crystal, all its thicknesses and places, once all is compiled: of 64
    configurations on the grid of the file, and of the network with all that it is told."""
    settings = Settings(**json.loads(data.attrs["settings"]))
    apply, spent = jax.jit(parts), {"simulated": [], "known": [], "network": []}
    for i in range(crystals + 1):
        crystal = Crystal(**{n: data[n][i] for n in Crystal._fields})
        ours, f, key = (
            jax.tree.map(jnp.asarray, crystal),
            factors(settings, crystal),
            jax.random.key(i),
        )

        def simulate(ours=ours, f=f, key=key, count=64 if i else 1):
            sums = moving(settings, ours, f, key, 0, count)[1]
            return recorded(settings, ours.edge_A, sums / 64)

        def know(crystal=crystal, key=key):
            rows = foreknown(settings, crystal, key)
            return {n: jnp.asarray(a.reshape(-1, *a.shape[2:])) for n, a in rows.items()}

        for name, compute in (("simulated", simulate), ("known", know)):
            begun = time.process_time()
            out = jax.block_until_ready(compute())
            spent[name].append(time.process_time() - begun)
        begun = time.process_time()
        jax.block_until_ready(apply(network, law, out))
        spent["network"].append(time.process_time() - begun)
    seconds = {n: float(np.sum(s[1:])) / crystals for n, s in spent.items()}
    return seconds | {"ratio": seconds["simulated"] / (seconds["known"] + seconds["network"])}


def figure(seen: dict, total, diffuse):
    """Three patterns: elastic, truth, foretold, what they differ by, rings."""
    share = seen["diffuse"].sum((1, 2)) / seen["total"].sum((1, 2))
    shown = np.argsort(share)[[len(share) // 10, len(share) // 2, -len(share) // 10]]
    drawn, axes = new_figure(3, 5, 17.0, 9.6)
    for row, i in zip(axes, shown, strict=True):
        high, most = np.log10(seen["total"][i].max()), np.quantile(seen["diffuse"][i], 0.999)
        logarithm = np.log10(np.maximum(seen["elastic"][i], 1e-3))
        image_panel(row[0], logarithm, "elastic (log10)", vmin=high - 4, vmax=high)
        image_panel(row[1], seen["diffuse"][i], "diffuse, simulated", vmin=0, vmax=most)
        image_panel(row[2], diffuse[i], "diffuse, foretold", vmin=0, vmax=most)
        off = diffuse[i] - seen["diffuse"][i]
        image_panel(row[3], off, "difference", vmin=-most / 4, vmax=most / 4, cmap="RdBu_r")
        for image, name, style in (
            (seen["total"], "simulated", "-"),
            (total, "foretold", "--"),
            (seen["elastic"], "elastic", ":"),
        ):
            rings = baselines.radial(image[i : i + 1])[0]
            row[4].semilogy(baselines.RINGS_MRAD[:-1] + 1.0, rings, style, label=name)
        row[4].legend(fontsize=7)
        row[4].set_xlabel("angle (mrad)", fontsize=8)
    return drawn


def tell(row: dict) -> None:
    rounded = {n: float(f"{v:.3g}") if isinstance(v, float) else v for n, v in row.items()}
    print(json.dumps(rounded), flush=True)


def learned(path: pathlib.Path, asked):
    """Writes the network that does best on the crystals for validation, and its law."""
    with h5py.File(path) as file:
        split = file["split"].asstr()[()]
        learn = told(file, split == "train", SAMPLES)
        stop = told(file, split == "validation")
    schedule = Schedule(steps=asked.steps, chunk=100, learning_rate=2e-3, held_out=4)
    law = beyond_law(learn)
    ours = training(learn, stop, law)
    key, resume = jax.random.key(0), asked.checkpoint is not None
    course = train(ours, schedule, key, checkpoint=asked.checkpoint, resume=resume).course
    facts = {"steps": len(course.losses), "law": law.tolist()}
    save_network(WEIGHTS, best_network(ours, course), OPTIONS, facts, dtype="float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("learn", type=pathlib.Path)
    parser.add_argument("test", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--checkpoint", type=pathlib.Path)
    asked = parser.parse_args()
    if asked.steps:
        learned(asked.learn, asked)
    saved = load_network(WEIGHTS)
    network, law = saved.network, jnp.asarray(saved.facts["law"], jnp.float32)
    with h5py.File(asked.test) as file:
        which = file["split"].asstr()[()] == "test"
        seen = told(file, which)
        tell({"prediction": "noise of the labels"} | noise(file, which, seen))
        for name, (total, diffuse) in known(seen).items():
            tell({"prediction": name} | scores(total, diffuse, seen))
        total, diffuse = foretold(network, law, seen)
        tell({"prediction": "network"} | scores(total, diffuse, seen))
        tell(
            {"cpu_s_a_crystal": "64 configurations, all before the network, the network"}
            | speed(network, law, file)
        )
    figure(seen, total, diffuse).savefig(HERE / "figure.png", dpi=70)


if __name__ == "__main__":
    main()
