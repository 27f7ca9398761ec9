"""Hysteresis loops from what a film looks like at almost no voltage (im2spec, team 4).

    python experiments/im2spec/run.py BEPS_PTO_50x50.h5 [--members 5] [--windows 0.25 0.5 1 2 4]
    python experiments/im2spec/run.py FILE --figure        # figure.png, of the rows
    python experiments/im2spec/run.py --simulated        # is the width of a window learned?

The image is the response at less than 1.1 V: the logarithm of its root mean square, and its mean
over that. The spectra are the response at all other voltages as arcsinh(response / median), since a
few pixels answer a thousand times as strongly as most. Strips of columns are learned from, stopped
by and looked at; four columns between them are left out. Prints one JSON line a method.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from micjax.io import read
from micjax.nets.encoder_decoder import ImageToSpectrum
from micjax.nets.losses import faithful
from micjax.nets.train import Schedule, Training, best_network, courses
from micjax.nets.trust.conformal import conformal_factor
from micjax.nets.trust.ensemble import moments
from micjax.nets.trust.splits import TEST, TRAIN, VALIDATION, by_block
from micjax.report.figures import SERIES, image_panel, new_figure

HERE = pathlib.Path(__file__).parent
LOW_V = 1.1
EDGE = 9  # of a patch
SHARES = (22 / 42, 6 / 42, 14 / 42)  # columns 0 to 21, 26 to 31, 36 to 49
STRIPS = {"columns": 0, "rows from below": 3, "columns from the right": 2, "rows": 1}  # rotations
BATCH = 64
SCHEDULE = Schedule(steps=1500, chunk=50, learning_rate=1e-3, weight_decay=1e-2, held_out=1)


def film(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image [y, x, 2], spectra [y, x, bias], and the bias (V)."""
    field = read(file)
    bias, loops = np.asarray(field.axes[-1].values), np.asarray(field.data, float)
    low = np.abs(bias) < LOW_V
    size = np.sqrt(np.mean(loops[..., low] ** 2, axis=-1))
    image = np.stack([np.log(size / np.median(size)), loops[..., low].mean(-1) / size], axis=-1)
    return image, loops[..., ~low], bias[~low]


def patches_of(image: np.ndarray, edge: int) -> np.ndarray:
    """[y, x, edge, edge, channel], mirrored at the edges of the image."""
    half = edge // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (edge, edge), (0, 1))
    return np.moveaxis(windows, 2, -1)


def explained(estimate: np.ndarray, y: np.ndarray, mean: np.ndarray) -> float:
    """Coefficient of determination R2, over all pixels and points, against a mean spectrum."""
    return float(1.0 - np.sum((y - estimate) ** 2) / np.sum((y - mean) ** 2))


def ridge(x: dict, y: dict) -> tuple[np.ndarray, float]:
    """Of the strip that is looked at, for the penalty that does best where it is stopped by."""
    flat = {side: a.reshape(len(a), -1) for side, a in x.items()}
    centre, scale = flat[TRAIN].mean(0), flat[TRAIN].std(0)
    flat = {side: (a - centre) / scale for side, a in flat.items()}
    mean = y[TRAIN].mean(0)
    gram, right = flat[TRAIN].T @ flat[TRAIN], flat[TRAIN].T @ (y[TRAIN] - mean)
    best = (np.inf, 0.0, mean)
    for penalty in 10.0 ** np.arange(0.0, 5.1, 0.5):
        weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), right)
        off = np.mean((flat[VALIDATION] @ weights + mean - y[VALIDATION]) ** 2)
        best = min(best, (off, penalty, flat[TEST] @ weights + mean), key=lambda b: b[0])
    return best[2], best[1]


def loss(network, batch):
    return faithful(*network(batch[0]), batch[1])


def draw(key, data):
    index = jax.random.randint(key, (BATCH,), 0, len(data[TRAIN][0]))
    return tuple(a[index] for a in data[TRAIN])


def networks(x: dict, y: dict, window_px: float, members: int) -> list[ImageToSpectrum]:
    data = {side: (jnp.asarray(x[side], float), jnp.asarray(y[side], float)) for side in x}
    begun = [
        ImageToSpectrum(
            y[TRAIN].shape[-1], x[TRAIN].shape[-1], window_px=window_px, rngs=nnx.Rngs(i)
        )
        for i in range(members)
    ]
    training = Training(begun[0], draw, loss, data, lambda key, data: data[VALIDATION])
    learned = []
    for i, network in enumerate(begun):
        *_, last = courses(training, SCHEDULE, jax.random.key(i), start=network)
        learned.append(best_network(training, last))
    return learned


def together(learned: list[ImageToSpectrum], patches: np.ndarray):
    apply = jax.jit(lambda network, patches: network(patches))
    answers = [apply(network, jnp.asarray(patches, float)) for network in learned]
    return jax.tree.map(np.asarray, moments(*map(np.array, zip(*answers, strict=True))))


def told(learned: list[ImageToSpectrum], x: dict, y: dict) -> dict:
    apply = jax.jit(lambda network, patches: network(patches))
    before, seen = together(learned, x[VALIDATION]), together(learned, x[TEST])
    mean = y[TRAIN].mean(0)
    factor = conformal_factor((np.abs(y[VALIDATION] - before.mean) / before.sd).ravel(), 0.9)
    single = [
        explained(np.asarray(apply(n, jnp.asarray(x[TEST], float))[0]), y[TEST], mean)
        for n in learned
    ]
    off = np.abs(y[TEST] - seen.mean)
    return {
        "R2": explained(seen.mean, y[TEST], mean),
        "R2_stopped_by": explained(before.mean, y[VALIDATION], mean),
        "R2_of_members": [round(r, 4) for r in single],
        "window_px": [round(float(n.window_px), 3) for n in learned],
        "coverage_90_uncalibrated": float(np.mean(off <= 1.645 * seen.sd)),
        "coverage_90": float(np.mean(off <= factor * seen.sd)),
    }


def split(image: np.ndarray, loops: np.ndarray) -> tuple[dict, dict]:
    """Patches and spectra of each side."""
    sides = by_block(loops.shape[:2], gap=4, shares=SHARES)
    scale = np.median(np.abs(loops[sides == TRAIN]))
    cube, spread = np.arcsinh(loops / scale), patches_of(image, EDGE)
    x, y = ({s: a[sides == s] for s in (TRAIN, VALIDATION, TEST)} for a in (spread, cube))
    return x, y


def real(image: np.ndarray, loops: np.ndarray, members: int, windows: list[float]) -> None:
    x, y = split(image, loops)
    middle = {s: a[:, EDGE // 2, EDGE // 2] for s, a in x.items()}
    mean = y[TRAIN].mean(0)
    tell(
        {
            "method": "mean spectrum",
            "R2": explained(np.broadcast_to(mean, y[TEST].shape), y[TEST], mean),
        }
    )
    for name, features in (("ridge, the pixel", middle), (f"ridge, {EDGE} x {EDGE}", x)):
        estimate, penalty = ridge(features, y)
        tell({"method": name, "penalty": penalty, "R2": explained(estimate, y[TEST], mean)})
    for window in windows:
        row = told(networks(x, y, window, members), x, y)
        tell({"method": "networks", "begun_px": window, "members": members} | row)


def figure(image: np.ndarray, loops: np.ndarray, bias: np.ndarray, members: int):
    """Loops that were not looked at while learning: of three pixels, and one voltage of all."""
    x, y = split(image, loops)
    seen = together(networks(x, y, 0.25, members), x[TEST])
    off = np.mean((seen.mean - y[TEST]) ** 2, axis=1)
    drawn, axes = new_figure(1, 5, 20.0, 3.6)
    order = np.argsort(off)
    for ax, share in zip(axes[0], (0.25, 0.5, 0.75), strict=False):
        i = order[int(share * len(order))]
        ax.plot(bias, y[TEST][i], ".-", lw=0.8, color=SERIES[0], label="measured")
        ax.plot(bias, seen.mean[i], color=SERIES[1], label="networks")
        low, high = (seen.mean[i] + sign * 1.645 * seen.sd[i] for sign in (-1.0, 1.0))
        order_of_bias = np.argsort(bias)
        for edge in (low, high):
            ax.plot(bias[order_of_bias], edge[order_of_bias], ".", ms=2, color=SERIES[1])
        ax.set_title(f"a pixel with the {share:.0%} quantile of the error", fontsize=9)
        ax.set_xlabel("bias (V)", fontsize=8)
        ax.legend(fontsize=7)
    largest = int(np.argmax(np.abs(y[TEST].mean(0))))
    shape = (loops.shape[0], -1)
    span = np.quantile(np.abs(y[TEST][:, largest]), 0.95)
    for ax, title, of in zip(
        axes[0, 3:], ("measured", "networks"), (y[TEST], seen.mean), strict=True
    ):
        at = f"{title}, {bias[largest]:.2g} V"
        image_panel(ax, of[:, largest].reshape(shape), at, vmin=-span, vmax=span, cmap="RdBu_r")
    return drawn


def simulated(width_px: float, seed: int) -> None:
    """Peaks that lie where the surroundings of a pixel, blurred by a width, say."""
    energy, edge, number = np.linspace(-1.0, 1.0, 32), 13, 256
    r = np.arange(edge) - edge // 2
    blur = np.exp(-0.5 * (r[:, None] ** 2 + r**2) / width_px**2)
    blur, energy = jnp.asarray(blur / blur.sum(), float), jnp.asarray(energy, float)

    def pairs(key, data):
        of_image, of_noise = jax.random.split(key)
        patches = jax.random.normal(of_image, (number, edge, edge, 1))
        place = 2.0 * jnp.einsum("nijc,ij->n", patches, blur)
        spectra = jnp.exp(-0.5 * ((energy - place[:, None]) / 0.3) ** 2)
        return patches, spectra + 0.05 * jax.random.normal(of_noise, spectra.shape)

    network = ImageToSpectrum(32, window_px=0.5, rngs=nnx.Rngs(seed))
    training = Training(network, pairs, loss)
    schedule = Schedule(steps=1500, chunk=250, learning_rate=3e-3)
    *_, last = courses(training, schedule, jax.random.key(seed))
    learned = best_network(training, last)
    row = {"method": "simulated", "true_px": width_px, "learned_px": float(learned.window_px)}
    patches, _ = jax.jit(pairs)(jax.random.key(1000 + seed), None)
    tell(row | {"seen_px": reach_of(learned, patches), "seed": seed})


def reach_of(network: ImageToSpectrum, patches) -> float:
    """The width that a spectrum depends on, convolutions included: of slopes that fall off like a
    Gaussian filter, the root of their mean square distance, weighed with their squares."""

    def answer(patches):
        return jnp.sum(network(patches)[0] ** 2)

    slopes = np.asarray(jax.jit(jax.grad(answer))(patches))[..., 0]
    weight = np.mean(slopes**2, axis=0)
    r = np.arange(len(weight)) - len(weight) // 2
    return float(np.sqrt(np.sum(weight * (r[:, None] ** 2 + r**2)) / np.sum(weight)))


def tell(row: dict) -> None:
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path, nargs="?")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--windows", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--figure", action="store_true")
    asked = parser.parse_args()
    if asked.simulated:
        for seed, width in enumerate((1.0, 1.5, 2.5)):
            simulated(width, seed)
    elif asked.file is None:
        parser.error("a file, or --simulated, is needed")
    else:
        image, loops, bias = film(asked.file)
        if asked.figure:
            image, loops = (np.rot90(a, STRIPS["rows"]) for a in (image, loops))
            figure(image, loops, bias, asked.members).savefig(HERE / "figure.png", dpi=70)
            return
        for name, turns in STRIPS.items():
            tell({"strips": name})
            windows = asked.windows if name == "columns" else asked.windows[:1]
            real(*(np.rot90(a, turns) for a in (image, loops)), asked.members, windows)


if __name__ == "__main__":
    main()
