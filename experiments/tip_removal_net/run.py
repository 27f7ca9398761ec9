"""The 64 x 64 set with unknown tips: a tip head, erosion by its tip, the network's fill.

    python experiments/tip_removal_net/run.py train --to FOLDER [--steps 1500]
    python experiments/tip_removal_net/run.py test --of FOLDER [--keys 999 1000 1001]

Prints one JSON line a key of 64 images: peak signal to noise ratio (dB), mean over images, of every
estimate, without any alignment; how often the 90 % intervals hold; how often an estimate is above
its bound.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from blobs import paraboloid, scan
from head import head_training

from micjax.core.files import write_atomically
from micjax.core.foreign.hdf5 import opened
from micjax.core.tree import replace
from micjax.nets.train import Schedule, train, weights_of
from micjax.nets.trust.conformal import conformal_factor
from micjax.physics.tips.dilation import erode, touching_tip_pixels
from micjax.physics.tips.evidence import noise_sigma_nm
from micjax.physics.tips.villarrubia import villarrubia
from micjax.problems.tip.fill import network_of
from micjax.problems.tip.network import LEVEL, estimated

IMAGES = 64


def psnr(estimate, truth):
    """Of each image, over its own range."""
    squares = np.mean((np.asarray(estimate) - truth) ** 2, axis=(1, 2))
    return 10 * np.log10(np.ptp(truth, axis=(1, 2)) ** 2 / squares)


def trained(folder: pathlib.Path):
    with opened(folder / "weights.h5") as file:
        numbered = file.arrays("weights")
        saved = {file.get(f"weights/{i}").attrs["name"]: a for i, a in numbered.items()}
        factor = float(file.root.text("factor"))
    network = head_training(network_of(None).network).network
    return replace(network, {n: jnp.asarray(a) for n, a in saved.items()}), factor


def learn(folder: pathlib.Path, steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    training = head_training(network_of(None).network)
    began = time.process_time()
    result = train(
        training,
        Schedule(steps=steps, chunk=100, learning_rate=2e-3),
        jax.random.key(0),
        checkpoint=folder / "training.h5",
        resume=True,
        on_chunk=lambda c: print(len(c.losses), c.held_out[-1], time.process_time() - began),
    )
    run = jax.jit(lambda i: result.network.surface(i))
    scores = []
    for key in jax.random.split(jax.random.key(1), 8):
        batch = jax.jit(training.draw)(key, None)
        estimate = run(batch.image)
        scores.append(np.abs(batch.truth - estimate.surface) / estimate.scale)
    factor = conformal_factor(np.ravel(scores).astype(float), LEVEL)

    def write(file):
        file.attrs["factor"] = str(factor)
        for i, (name, array) in enumerate(weights_of(result.network).items()):
            file[f"weights/{i}"] = np.asarray(array, np.float16)
            file[f"weights/{i}"].attrs["name"] = name

    write_atomically(folder / "weights.h5", write)


def test(folder: pathlib.Path, key: int) -> dict:
    network, factor = trained(folder)
    draw = jax.jit(lambda k: jax.lax.map(scan, jax.random.split(k, IMAGES)))
    truth, clean, images, tips = draw(jax.random.key(key))
    true = np.asarray(truth)
    eroded = jax.jit(lambda i, t: jax.lax.map(lambda a: erode(*a, "replicate"), (i, t)))
    guess = jnp.broadcast_to(paraboloid(8.0), tips.shape)
    sigmas = np.array([float(noise_sigma_nm(i[None])) for i in images])
    classical = jnp.stack(
        [
            villarrubia(i[None], tips.shape[1:], 4.0 * s)[0]
            for i, s in zip(images, sigmas, strict=True)
        ]
    )
    heads, odds = jax.jit(lambda n, i: n.tip(i))(network, images)

    def with_tips(tips):
        run = jax.jit(lambda n, i, t: _told(n, i, t))
        parts = [run(network, images[k : k + 16], tips[k : k + 16]) for k in range(0, IMAGES, 16)]
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    estimates = {"head": with_tips(heads), "classical": with_tips(classical)}
    estimates["true"] = with_tips(tips)
    touching = np.asarray(
        jax.jit(lambda c, t: jax.lax.map(lambda a: touching_tip_pixels(*a), (c, t)))(clean, tips)
    )
    by_head = estimates["head"]
    inside = np.abs(true - by_head.surface) <= factor * by_head.scale
    off = np.asarray(heads - tips)
    return {
        "key": key,
        "psnr_dB": {
            "scan": psnr(images, true).mean(),
            "erosion, guessed tip": psnr(eroded(images, guess), true).mean(),
            "erosion, classical blind tip": psnr(eroded(images, classical), true).mean(),
            "erosion, tip of the head": psnr(eroded(images, heads), true).mean(),
            "erosion, true tip": psnr(eroded(images, tips), true).mean(),
            "network, classical blind tip": psnr(estimates["classical"].surface, true).mean(),
            "network, tip of the head": psnr(by_head.surface, true).mean(),
            "network, true tip": psnr(estimates["true"].surface, true).mean(),
        },
        "worse than the scan": int((psnr(by_head.surface, true) < psnr(images, true)).sum()),
        "inside": float(inside.mean()),
        "above the bound": int((by_head.surface > by_head.bound).sum()),
        "tip, rms where it touched": float(np.sqrt(np.mean(off[touching] ** 2))),
        "tip, rms of the guess there": float(
            np.sqrt(np.mean(np.asarray(guess - tips)[touching] ** 2))
        ),
        "said untouched, of untouched": float((np.asarray(odds) < 0)[~touching].mean()),
        "said touched, of touched": float((np.asarray(odds) > 0)[touching].mean()),
    }


def _told(network, images, tips):
    return estimated(network.fill, network.sights(images, tips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    does = parser.add_subparsers(dest="does", required=True)
    of_training, of_test = does.add_parser("train"), does.add_parser("test")
    of_training.add_argument("--to", type=pathlib.Path, required=True)
    of_training.add_argument("--steps", type=int, default=1500)
    of_test.add_argument("--of", type=pathlib.Path, required=True)
    of_test.add_argument("--keys", type=int, nargs="+", default=[999, 1000, 1001])
    given = parser.parse_args()
    if given.does == "train":
        learn(given.to, given.steps)
        return
    for key in given.keys:
        print(json.dumps(test(given.of, key), default=lambda v: round(float(v), 3)), flush=True)


if __name__ == "__main__":
    main()
