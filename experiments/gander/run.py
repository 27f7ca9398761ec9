"""Amplitude of piezoresponse from the height of a film (GANder, team 5), and what it must not tell.

    python experiments/gander/run.py --simulated            # a- and c-domains made up
    python experiments/gander/run.py FILE FILE ...          # scans, each left out once

Networks say a mean and a standard deviation; several that begin differently are one answer. pix2pix
(Isola 2017) is the rival: it has to look real as well. Prints one JSON line a method.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from domains import film
from flax import nnx
from optax import sigmoid_binary_cross_entropy
from scipy.special import expit
from scipy.stats import rankdata

from micjax.io import read
from micjax.nets.discriminator import Adversaries, PatchDiscriminator, adversarial
from micjax.nets.losses import faithful
from micjax.nets.train import Schedule, Training, best_network, courses
from micjax.nets.trust.ensemble import moments
from micjax.nets.trust.splits import without_each
from micjax.nets.unet import UNet

EDGE = 64
FILMS, CROPS = 4, 16  # of a step; fewer and more steps learn sooner
SIZES = {"width": 16, "depth": 3, "fold": 2}
SCHEDULE = Schedule(steps=2000, chunk=200, learning_rate=3e-3, held_out=16)
REAL = Schedule(steps=400, chunk=25, learning_rate=1e-3, weight_decay=1e-2, held_out=4, patience=6)
SLOPE = 0.06  # of a surface: about what the wall of an a-domain has
DARK = 0.5  # of the amplitude of a c-domain
MULTIPLE = 16  # of which a network wants so many pixels
LOWEST = 0.15  # of all pixels, which are to be told from the others
SCALES_PX = (1.0, 2.0, 4.0, 8.0, 16.0)
FEW = 3  # members


def seen(height_nm, pixel_nm):
    """Slopes along y and x, and the height: in units of that of an a-domain and not of the scan."""
    ratio = height_nm / jnp.asarray(pixel_nm)[..., None, None] / SLOPE
    ratio = ratio - ratio.mean(axis=(-2, -1), keepdims=True)
    slopes = [jnp.gradient(ratio, axis=axis) for axis in (-2, -1)]
    return jnp.stack([*slopes, 0.1 * ratio], axis=-1)


def network(seed: int, heads: int = 2) -> UNet:
    return UNet(3, heads, **SIZES, rngs=nnx.Rngs(seed))


def told(network, image):
    """Mean and standard deviation."""
    out = network(image)
    return out[..., 0], jnp.exp(out[..., 1])


def told_dark(network, image):
    """The same, and the logit of being dark."""
    out = network(image)
    return out[..., 0], jnp.exp(out[..., 1]), out[..., 2]


def loss(network, batch):
    """A mean is half dark where an edge may lie here or there; so dark is asked for as well."""
    mean, sd, logit = told_dark(network, batch[0])
    dark = (batch[1] < DARK).astype(logit.dtype)
    return faithful(mean, sd, batch[1]) + sigmoid_binary_cross_entropy(logit, dark).mean()


def made_up(key, data):
    films = jax.vmap(lambda k: film(k, EDGE))(jax.random.split(key, FILMS))
    return seen(films.height_nm, films.pixel_nm), films.amplitude


def learned(training: Training, schedule: Schedule, seeds: range, begin: Callable) -> list:
    ends = []
    for seed in seeds:
        *_, last = courses(training, schedule, jax.random.key(seed), start=begin(seed))
        ends.append(best_network(training, last))
    return ends


# --- pix2pix -----------------------------------------------------------------------------------


def adversaries(seed: int) -> Adversaries:
    judge = PatchDiscriminator(4, width=16, depth=3, rngs=nnx.Rngs(100 + seed))
    return Adversaries(network(seed, 1), judge)


def looks_real(pair: Adversaries, batch):
    made = pair.maker(batch[0])
    of_maker, of_judge = adversarial(pair, batch[0], made, batch[1][..., None])
    return 10.0 * off(pair, batch) + of_maker + of_judge


def off(pair: Adversaries, batch):
    return jnp.abs(pair.maker(batch[0])[..., 0] - batch[1]).mean()


# --- scores ------------------------------------------------------------------------------------


def auroc(score: np.ndarray, wanted: np.ndarray) -> float:
    """That a wanted pixel has a higher score than another one."""
    ranks, number = rankdata(score), int(wanted.sum())
    return float((ranks[wanted].sum() - number * (number + 1) / 2) / number / (~wanted).sum())


def jackknifed(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Values whose mean is a ratio of sums, and whose spread is that of films (Quenouille 1956)."""
    whole, n = above.sum() / below.sum(), len(above)
    return n * whole - (n - 1) * (above.sum() - above) / (below.sum() - below)


def scores(mean: np.ndarray, films, dark: np.ndarray | None = None) -> dict:
    """**Arguments:** `dark`: pixels, if not those of a mean that is dark."""
    a, wall = np.asarray(films.a_domain), np.asarray(films.c_wall)
    if dark is None:
        dark = mean < DARK
    both, either = ((f(dark, a)).sum(axis=(1, 2)) for f in (np.logical_and, np.logical_or))
    shares = jackknifed(both, either)
    apart = ~scipy.ndimage.binary_dilation(a, np.ones((1, 9, 9)))  # of the c-domains
    return {
        "a_domain_IoU": shares.mean(),
        "standard_error": shares.std(ddof=1) / np.sqrt(len(shares)),
        "c_wall_AUROC": auroc(-mean[apart], wall[apart]),
        "dark_outside_share": float(dark[apart].mean()),
        "L1": float(np.abs(mean - np.asarray(films.amplitude)).mean()),
    }


def simulated(steps: int, key: int) -> None:
    schedule = dataclasses.replace(SCHEDULE, steps=steps)
    keys = jax.random.split(jax.random.key(key), 64)
    films = jax.jit(jax.vmap(lambda k: film(k, EDGE)))(keys)
    image = seen(films.height_nm, films.pixel_nm)
    steep = np.hypot(*(np.asarray(image[..., i]) for i in (0, 1)))
    smooth = scipy.ndimage.gaussian_filter(steep, (0, 2, 2))
    best = max(
        (scores(-smooth * s + 1.0, films) for s in (0.3, 0.5, 0.8, 1.2, 2.0)),
        key=lambda r: r["a_domain_IoU"],
    )
    tell({"method": "a c-domain everywhere"} | scores(np.ones(image.shape[:-1]), films))
    tell({"method": "slope, threshold by the truth"} | best | {"L1": None})
    training = Training(network(0, 3), made_up, loss)
    apply = jax.jit(told_dark)
    ends = learned(training, schedule, range(FEW), lambda seed: network(seed, 3))
    means, sds, logits = map(np.array, zip(*(apply(n, image) for n in ends), strict=True))
    chances = expit(logits)
    for seed in range(FEW):
        alone = scores(means[seed], films, chances[seed] > 0.5)
        tell({"method": f"network {seed} alone"} | alone)
    both = jax.tree.map(np.asarray, moments(means, sds))
    inside = np.abs(both.mean - np.asarray(films.amplitude)) <= 1.645 * both.sd
    tell(
        {"method": f"{FEW} networks"}
        | scores(both.mean, films, chances.mean(axis=0) > 0.5)
        | {"IoU_of_the_mean": scores(both.mean, films)["a_domain_IoU"]}
        | {"coverage_90": float(inside.mean())}
    )
    rival = Training(adversaries(0), made_up, looks_real, score=off)
    slower = dataclasses.replace(schedule, learning_rate=2e-3)
    (pair,) = learned(rival, slower, range(1), adversaries)
    made = jax.jit(lambda pair, image: pair.maker(image)[..., 0])(pair, image)
    tell({"method": "pix2pix"} | scores(np.asarray(made), films))


# --- scans -------------------------------------------------------------------------------------


def scan(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Levelled height (nm), and the rank of the smoothed amplitude, whose unit differs."""
    height, amplitude = read(file, "HeightRetrace"), read(file, "AmplitudeRetrace")
    steps = np.array([abs(axis.step) for axis in height.axes])
    values, seen = (square(np.asarray(f.data, float), steps) for f in (height, amplitude))
    y, x = np.indices(values.shape)
    plane = np.stack([np.ones(values.size), y.ravel(), x.ravel()], axis=1)
    values = 1e9 * values
    values = values - (plane @ np.linalg.lstsq(plane, values.ravel(), rcond=None)[0]).reshape(
        values.shape
    )
    values -= np.median(values, axis=1, keepdims=True)
    smooth = scipy.ndimage.gaussian_filter(seen, 1.0)
    ranks = rankdata(smooth).reshape(smooth.shape) / smooth.size
    return {
        "height_nm": values,
        "rank": ranks,
        "low": ranks <= LOWEST,
        "pixel_nm": 1e9 * steps.min(),
    }


def square(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """On pixels that are squares, as large as they were along their shorter edge; as many as the
    network takes."""
    even = scipy.ndimage.zoom(values, steps / steps.min(), order=1, mode="nearest", grid_mode=True)
    rows, columns = (n - n % MULTIPLE for n in even.shape)
    return even[:rows, :columns]


def slopes_of(one_scan: dict) -> np.ndarray:
    """Slopes and curvatures of several scales, for ridge regression."""
    height, out = one_scan["height_nm"] / one_scan["pixel_nm"], []
    for width in SCALES_PX:
        dy, dx, yy, xx, xy = (
            scipy.ndimage.gaussian_filter(height, width, order=order) * width ** sum(order)
            for order in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1))
        )
        above = scipy.ndimage.gaussian_filter(height, width) - scipy.ndimage.gaussian_filter(
            height, 2 * width
        )
        spread = np.sqrt(0.25 * (xx - yy) ** 2 + xy**2)
        out += [above, np.hypot(dy, dx), 0.5 * (xx + yy) + spread, 0.5 * (xx + yy) - spread]
    features = np.stack(out, axis=-1)
    return features / features.std(axis=(0, 1))


def ridge(features: list[np.ndarray], wanted: list[np.ndarray]) -> np.ndarray:
    """Weights of features, the penalty a hundred pixels."""
    x = np.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
    y = np.concatenate([w.ravel() for w in wanted]) - 0.5
    return np.linalg.solve(x.T @ x + 100.0 * np.eye(x.shape[1]), x.T @ y)


def crops(key, data):
    """Pieces of scans, turned over as well; the last array says which pixels are learned from."""
    of_scan, of_place, of_turn = jax.random.split(key, 3)
    images, ranks, used, sizes = data
    which = jax.random.randint(of_scan, (CROPS,), 0, len(images))
    place = jax.random.uniform(of_place, (CROPS, 2))
    turn = jax.random.bernoulli(of_turn, 0.5, (CROPS,))

    def crop(i, u, over):
        start = jnp.floor(u * (sizes[i] - EDGE + 1)).astype(int)
        height, rank, use = (
            jax.lax.dynamic_slice(a[i], start, (EDGE, EDGE)) for a in (images, ranks, used)
        )
        return tuple(jnp.where(over, a[:, ::-1], a) for a in (height, rank, use))

    height, rank, use = jax.vmap(crop)(which, place, turn)
    return seen(height, jnp.ones(CROPS)), rank, use


def of_crops(network, batch):
    """`faithful`, of the pixels that are used."""
    mean, sd = told(network, batch[0])
    return faithful(jnp.where(batch[2], mean, batch[1]), jnp.where(batch[2], sd, 1.0), batch[1])


def stacked(scans: list[dict], used: list[np.ndarray]) -> tuple:
    """Scans of several sizes in one array, and the sizes."""
    edge = max(max(s["rank"].shape) for s in scans)

    def padded(image):
        return np.pad(image, [(0, edge - n) for n in image.shape])

    heights = np.stack([padded(s["height_nm"] / s["pixel_nm"]) for s in scans])
    arrays = (heights, np.stack([padded(s["rank"]) for s in scans]))
    sizes = jnp.array([s["rank"].shape for s in scans])
    return (
        *(jnp.asarray(a, float) for a in arrays),
        jnp.asarray(np.stack([padded(u) for u in used])),
        sizes,
    )


def foretold(networks: list, one_scan: dict) -> np.ndarray:
    image = seen(jnp.asarray(one_scan["height_nm"] / one_scan["pixel_nm"], float), 1.0)
    apply = jax.jit(told)
    return np.mean([np.asarray(apply(n, image)[0]) for n in networks], axis=0)


def real(files: list[pathlib.Path]) -> None:
    names = [file.stem for file in files]
    scans = [scan(file) for file in files]
    features = [slopes_of(s) for s in scans]
    everywhere = [np.ones(s["rank"].shape, bool) for s in scans]
    rows = []
    for out, kept in without_each(names).items():
        test = names.index(out)
        left = [i for i in np.flatnonzero(kept)]
        weights = ridge([features[i] for i in left], [scans[i]["rank"] for i in left])
        stop = left[test % len(left)]  # one of the others says when to stop
        learn = [i for i in left if i != stop]
        data = [
            stacked([scans[i] for i in side], [everywhere[i] for i in side])
            for side in (learn, [stop])
        ]
        training = Training(
            network(0),
            lambda k, d: crops(k, d[0]),
            of_crops,
            tuple(data),
            lambda k, d: crops(k, d[1]),
        )
        ends = learned(training, REAL, range(FEW), network)
        row = {
            "left_out": out,
            "ridge": auroc(-(features[test] @ weights).ravel(), scans[test]["low"].ravel()),
        }
        row["networks"] = auroc(-foretold(ends, scans[test]).ravel(), scans[test]["low"].ravel())
        rows.append(row)
        tell(row)
    for name in ("ridge", "networks"):
        values = np.array([row[name] for row in rows])
        tell(
            {
                "method": name,
                "AUROC": values.mean(),
                "standard_error": values.std(ddof=1) / np.sqrt(len(values)),
            }
        )
    tell({"method": "networks, pixels of the same scan on both sides", "AUROC": leaky(scans)})


def leaky(scans: list[dict]) -> float:
    """What comes out where pixels are split and not scans, a warning."""
    rng = np.random.default_rng(0)
    used = [rng.random(s["rank"].shape) < 0.5 for s in scans]
    data = stacked(scans, used)
    training = Training(network(0), crops, of_crops, data)
    ends = learned(
        training, dataclasses.replace(REAL, steps=1500, patience=None), range(1), network
    )
    values = [auroc(-foretold(ends, s)[~u], s["low"][~u]) for s, u in zip(scans, used, strict=True)]
    return float(np.mean(values))


def tell(row: dict) -> None:
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=pathlib.Path, nargs="*")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--steps", type=int, default=SCHEDULE.steps)
    parser.add_argument("--key", type=int, default=0, help="of the films that are looked at")
    asked = parser.parse_args()
    if asked.simulated:
        simulated(asked.steps, asked.key)
    elif asked.files:
        real(asked.files)
    else:
        parser.error("files, or --simulated, are needed")


if __name__ == "__main__":
    main()
