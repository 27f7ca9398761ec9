"""A network for the thermal diffuse part of CBED patterns, on compositions it never saw.

    python experiments/thermal_diffuse/run.py runs/learn.h5 --pixels 256
    python experiments/thermal_diffuse/run.py runs/test.h5 --pixels 256 --only test \\
        --configurations 512 --crystals 24
    python experiments/thermal_diffuse_net/run.py runs/learn.h5 runs/test.h5 [--steps 3000]

Learns from the crystals of the first file that are for training, is stopped by those for
validation, and is looked at with those of the second. Prints one JSON line a prediction, and writes
figure.png.
"""

import argparse
import json
import pathlib
import sys
import time

import h5py
import jax
import jax.numpy as jnp
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "thermal_diffuse"))

import baselines  # noqa: E402
from model import BEAM, parts, told, training  # noqa: E402

from micjax.nets.train import Schedule, best_network, train  # noqa: E402
from micjax.nets.trust.ensemble import moments  # noqa: E402
from micjax.report.figures import image_panel, new_figure  # noqa: E402

CHUNK = 64  # patterns at once


def scores(elastic, diffuse, seen: dict) -> dict[str, float]:
    """Means over patterns: what the diffuse part is off by, relatively; rings; the whole."""
    wanted = seen["elastic"] + seen["diffuse"]
    total = elastic + diffuse
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
    return scores(BEAM * (total - diffuse), BEAM * diffuse, seen)


def fitted(seen: dict) -> tuple[np.ndarray, np.ndarray]:
    """damped exp(-B k^2) + c, B and c of the very pattern: the classical picture."""
    total = (seen["elastic"] + seen["diffuse"]).astype(float)
    model = baselines.damped_and_flat(seen["damped"].astype(float), total)
    diffuse = np.maximum(model - seen["damped"], 0.0)
    return model - diffuse, diffuse


def foretold(networks: list, seen: dict) -> tuple[np.ndarray, np.ndarray]:
    apply = jax.jit(parts)
    out = []
    for network in networks:
        pieces = [
            apply(network, {n: jnp.asarray(a[i : i + CHUNK]) for n, a in seen.items()})
            for i in range(0, len(seen["vector"]), CHUNK)
        ]
        out.append([np.concatenate([np.asarray(p[k]) for p in pieces]) for k in (0, 1)])
    both = np.array(out)
    return tuple(np.asarray(moments(both[:, k], np.zeros_like(both[:, k])).mean) for k in (0, 1))


def speed(networks: list, seen: dict) -> float:
    """CPU seconds of a pattern, warmed up."""
    apply = jax.jit(parts)
    batch = {n: jnp.asarray(a[:CHUNK]) for n, a in seen.items()}
    jax.block_until_ready(apply(networks[0], batch))
    begun = time.process_time()
    for _ in range(3):
        jax.block_until_ready(apply(networks[0], batch))
    return (time.process_time() - begun) / 3 / len(batch["vector"])


def figure(seen: dict, elastic, diffuse):
    """Three patterns: what goes in, what was simulated, what the network says, their rings."""
    share = seen["diffuse"].sum((1, 2)) / (seen["elastic"] + seen["diffuse"]).sum((1, 2))
    shown = np.argsort(share)[[len(share) // 10, len(share) // 2, -len(share) // 10]]
    drawn, axes = new_figure(3, 5, 17.0, 9.6)
    for row, i in zip(axes, shown, strict=True):
        high = np.log10(seen["damped"][i].max())
        panels = (
            ("Debye-Waller damped", seen["damped"][i]),
            ("total, simulated", seen["elastic"][i] + seen["diffuse"][i]),
            ("diffuse, simulated", seen["diffuse"][i]),
            ("diffuse, network", diffuse[i]),
        )
        for ax, (title, image) in zip(row, panels, strict=False):
            image_panel(ax, np.log10(np.maximum(image, 1e-3)), title, vmin=high - 4, vmax=high)
        for image, name in (
            (seen["elastic"] + seen["diffuse"], "simulated"),
            (elastic + diffuse, "network"),
            (seen["damped"], "damped"),
        ):
            row[-1].semilogy(
                baselines.RINGS_MRAD[:-1] + 1.0, baselines.radial(image[i : i + 1])[0], label=name
            )
        row[-1].legend(fontsize=7)
        row[-1].set_xlabel("angle (mrad)", fontsize=8)
    return drawn


def tell(row: dict) -> None:
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("learn", type=pathlib.Path)
    parser.add_argument("test", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--checkpoint", type=pathlib.Path)
    asked = parser.parse_args()
    with h5py.File(asked.learn) as file:
        split = file["split"].asstr()[()]
        learn, stop = (told(file, split == name) for name in ("train", "validation"))
    with h5py.File(asked.test) as file:
        which = file["split"].asstr()[()] == "test"
        seen = told(file, which)
        tell({"prediction": "noise of the test labels"} | noise(file, which, seen))
    nothing = np.zeros_like(seen["damped"])
    tell({"prediction": "static, as it is"} | scores(seen["static"], nothing, seen))
    tell({"prediction": "damped, as it is"} | scores(seen["damped"], nothing, seen))
    tell({"prediction": "damped exp(-B k^2) + c, fitted to each"} | scores(*fitted(seen), seen))
    networks = []
    schedule = Schedule(steps=asked.steps, chunk=100, learning_rate=2e-3, held_out=2)
    for seed in range(asked.members):
        trained = train(
            training(learn, stop, seed=seed),
            schedule,
            jax.random.key(seed),
            checkpoint=asked.checkpoint,
            resume=asked.checkpoint is not None,
        )
        networks.append(best_network(training(learn, stop, seed=seed), trained.course))
    elastic, diffuse = foretold(networks, seen)
    row = {"prediction": f"{len(networks)} network", "cpu_s_a_pattern": speed(networks, seen)}
    tell(row | scores(elastic, diffuse, seen))
    figure(seen, elastic, diffuse).savefig(HERE / "figure.png", dpi=70)


if __name__ == "__main__":
    main()
