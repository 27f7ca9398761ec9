"""Valence of manganese from white lines (team 17): a mixture of references, shifted and blurred.

    python experiments/valence/run.py            # one JSON line a row
    python experiments/valence/run.py --peers PYTHON    # an interpreter with scikit-learn

Spectra of three valences, their lines 1.2 eV apart for each, are mixed at random, moved by up to
2 eV, seen with 0.5 to 1.5 eV and counted: 1e4 electrons in the lines, on as many of background.
"""

import argparse
import json
import subprocess
import tempfile

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.optimize import nnls

from micjax import InverseProblem, Poisson, fit_map
from micjax.physics.spectra.backgrounds import PowerLaw
from micjax.physics.spectra.composed import References, SumOf
from micjax.physics.spectra.line_shapes import arctan_step, lorentzian

STRANGE = 2.5  # standard deviations
STEP, MARGIN = 0.3, 60
X = 610.0 + STEP * np.arange(220)
WIDE = X[0] + STEP * np.arange(-MARGIN, len(X) + MARGIN)
VALENCES = (2, 3, 4)
SHIFT_PER_VALENCE_EV = 1.2
# of L3: (offset in eV, height, width in eV) of its lines; ratio of L3 to L2, their distance in eV
SHAPES = {
    2: (((0.0, 1.0, 0.8), (2.0, 0.25, 1.0), (3.6, 0.12, 1.2)), 4.0, 11.2),
    3: (((0.0, 0.8, 1.4), (-1.2, 0.35, 1.2), (1.8, 0.35, 1.6)), 2.7, 11.0),
    4: (((0.0, 1.0, 1.1), (-2.2, 0.45, 0.9), (2.0, 0.2, 1.4)), 2.0, 10.7),
}


def reference(valence: int) -> np.ndarray:
    """On the wide axis; its lines add up to one."""
    lines, ratio, splitting = SHAPES[valence]
    l3 = 640.0 + SHIFT_PER_VALENCE_EV * (valence - 2)
    x, y, height = jnp.asarray(WIDE), np.zeros(len(WIDE)), sum(h for _, h, _ in lines)
    for offset, h, width in lines:
        y += np.asarray(lorentzian(x, h, l3 + offset, width))
        y += np.asarray(lorentzian(x, h / ratio, l3 + splitting + offset, width))
    total = y.sum()
    step = 0.15 * height * (2.0 / 3.0 * arctan_step(x, 1.0, l3, 1.5))
    return (y + np.asarray(step + 0.05 * height * arctan_step(x, 1.0, l3 + splitting, 1.5))) / total


LIBRARY = np.stack([reference(v) for v in VALENCES])


def drawn(n: int, counts: float, rng) -> tuple[np.ndarray, np.ndarray]:
    """Counts `[n, channel]`, and the mean valence of each."""
    share = rng.dirichlet(np.ones(3), n)
    out = []
    for own in share:
        model = References(
            counts * own, rng.uniform(-2.0, 2.0), rng.uniform(0.5, 1.5), LIBRARY, STEP
        )
        background = (X / X[0]) ** -rng.uniform(2.5, 3.5)
        out.append(np.asarray(predicted(model)) + counts * background / background.sum())
    return rng.poisson(np.maximum(out, 0.0)).astype(float), share @ VALENCES


@eqx.filter_jit
def predicted(model: References):
    return model(jnp.asarray(X, float))


def fitted(y: np.ndarray, known: tuple[int, ...], counts: float):
    """Valence of each spectrum with a library of these valences, its error, and whether the library
    explains the spectrum."""
    spectra = LIBRARY[[VALENCES.index(v) for v in known]]
    k = len(known)
    parts = {
        "lines": References(np.full(k, counts / k), 0.0, 1.0, spectra, STEP),
        "background": PowerLaw(counts / len(X), 3.0, 625.0),
    }
    pixel = InverseProblem(
        SumOf(parts),
        Poisson(1.0),
        {
            "forward.lines.amounts": dist.HalfNormal(2.0 * counts).expand((k,)).to_event(1),
            "forward.lines.shift": dist.Normal(0.0, 1.5),
            "forward.lines.fwhm": dist.LogNormal(0.0, 0.4),
            "forward.background.level": dist.HalfNormal(4.0 * counts / len(X)),
            "forward.background.exponent": dist.Normal(3.0, 1.0),
        },
    )
    starts = [{"forward.lines.shift": s} for s in (-1.5, 0.0, 1.5)]
    fit = fit_map(pixel, X, y, starts=starts, steps=200, covariance=True)

    def valence(values):
        amounts = values["forward.lines.amounts"]
        return {"valence": jnp.sum(amounts * jnp.asarray(known, float)) / jnp.sum(amounts)}

    value, sd = fit.derived(valence)
    # two looks at one residual: its size, and whether neighbours are alike
    strange = np.maximum(fit.excess, fit.correlated) > STRANGE
    return value["valence"], sd["valence"], strange, fit


def by_least_squares(y: np.ndarray) -> np.ndarray:
    """Without shift and resolution: references at 1 eV and a power law."""
    seen = [
        np.asarray(predicted(References(np.eye(3)[i], 0.0, 1.0, LIBRARY, STEP))) for i in range(3)
    ]
    design = np.stack([*seen, (X / X[0]) ** -3.0], axis=1)
    shares = np.array([nnls(design, row)[0][:3] for row in y])
    return shares @ VALENCES / np.maximum(shares.sum(axis=1), 1e-9)


FOREST = """
import sys, numpy as np
from sklearn.ensemble import RandomForestRegressor
with np.load(sys.argv[1]) as file:
    learn, told, y = (file[n] for n in ("learn", "told", "y"))
forest = RandomForestRegressor(500, random_state=0)
forest.fit(learn / learn.sum(1, keepdims=True), told)
np.save(sys.argv[2], forest.predict(y / y.sum(1, keepdims=True)))
"""


def by_forest(python: str, learn, told, y) -> np.ndarray:
    """The team's random forest, trained on spectra that no test spectrum is made of."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = f"{folder}/given.npz", f"{folder}/valence.npy"
        np.savez(given, learn=learn, told=told, y=y)
        subprocess.run([python, "-c", FOREST, given, result], check=True)
        return np.load(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spectra", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--peers", help="an interpreter with scikit-learn")
    parser.add_argument("--counts", type=float, default=1e4)
    asked = parser.parse_args()
    y, true = drawn(asked.spectra, asked.counts, np.random.default_rng(asked.seed))
    learn, told = drawn(4000, asked.counts, np.random.default_rng(asked.seed + 1000))

    def row(name: str, valence: np.ndarray, **more):
        rms = float(np.sqrt(np.mean((valence - true) ** 2)))
        print(json.dumps({"valence from": name, "rms error": round(rms, 3)} | more), flush=True)

    row("the mean of all", np.full(len(true), told.mean()))
    row("least squares, no shift", by_least_squares(y))
    if asked.peers:
        row("random forest, 4000 other spectra", by_forest(asked.peers, learn, told, y))
    complete = (2, 3, 4)
    for known in (complete, (3, 4), (2, 4), (2, 3)):
        value, sd, strange, fit = fitted(y, known, asked.counts)
        held = float(np.mean(np.abs(value - true) < 1.645 * sd))
        missing = (
            {}
            if known == complete
            else {
                "rms error where not flagged": round(
                    float(np.sqrt(np.mean((value - true)[~strange] ** 2))), 3
                )
            }
        )
        row(
            f"micjax, references {', '.join(map(str, known))}",
            value,
            **{"90 % hold": round(held, 3), "flagged": round(float(strange.mean()), 3)} | missing,
            status={k: v for k, v in fit.counts().items() if v},
        )


if __name__ == "__main__":
    main()
