"""A stack of drifting frames whose truth nobody knows: one is foretold from the others.

    python experiments/denoise/stack.py FILE [--held-out 4] [--steps 600] [--peers PYTHON]

The others are denoised as one image, by each method; gain, offset, drift and standard deviation are
then fitted to the frame that was held out. Prints one JSON line a method: nats a pixel above those
of the mean of the frames as it is. `--peers` names an interpreter with bm3d and scikit-image.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.optimize

import micjax
from micjax.problems import denoise
from micjax.problems.denoise.drift import drift_of
from micjax.problems.denoise.model import shifted
from micjax.problems.denoise.stages import combined
from micjax.problems.denoise.trust import WIDTHS_PX

MARGIN_PX = 24  # at the edges, where not all frames were
PEER = """
import sys, numpy as np, bm3d
from skimage.restoration import denoise_tv_chambolle
with np.load(sys.argv[1]) as file:
    image, sigma = file["image"], float(file["sigma"])
out = {f"bm3d {w}": sigma * bm3d.bm3d(image / sigma, sigma_psd=w) for w in (0.7, 1.0, 1.5, 2.0)}
for w in (0.5, 1.0, 2.0, 3.0, 5.0):
    out[f"tv {w}"] = sigma * denoise_tv_chambolle(image / sigma, weight=w)
np.savez(sys.argv[1] + ".out.npz", **out)
"""


def others(python: str | None, image: np.ndarray, sigma: float) -> dict[str, np.ndarray]:
    if python is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = str(pathlib.Path(folder) / "image.npz")
        np.savez(file, image=image, sigma=sigma)
        subprocess.run([python, "-c", PEER, file], check=True)
        with np.load(file + ".out.npz") as out:
            return dict(out)


def nats(image: np.ndarray, frame: np.ndarray, begun_px: np.ndarray) -> float:
    """Of a pixel of a frame, for the drift, gain, offset and deviation that it likes best."""
    inside = np.s_[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    move, wanted = jax.jit(shifted), frame[inside].ravel()

    def rms(drift) -> float:
        moved = np.asarray(move(jnp.asarray(image), jnp.asarray(drift)))[inside].ravel()
        slope = np.cov(moved, wanted)[0, 1] / moved.var(ddof=1)
        return float(np.std(wanted - slope * moved))

    best = scipy.optimize.minimize(rms, begun_px, method="Nelder-Mead", options={"xatol": 0.01})
    return -np.log(best.fun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--held-out", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--peers")
    asked = parser.parse_args()
    options, _, y = denoise.load(asked.file, noise="normal")
    frames = np.asarray(y, float)
    # the drift of the held-out frame against the first is begun from that of all
    drift = drift_of(frames, 12)[asked.held_out]
    kept = jnp.asarray(np.delete(frames, asked.held_out, axis=0), float)
    problem = denoise.problem(**options | {"frames": len(kept)})
    solution = micjax.solve(
        denoise, problem, jnp.arange(len(kept)), kept, key=jax.random.key(0), steps=asked.steps
    )
    image, law = combined(solution.problem, kept)
    images = {"mean of the frames": image}
    images |= {f"Gaussian {w} px": scipy.ndimage.gaussian_filter(image, w) for w in WIDTHS_PX}
    images |= others(asked.peers, image, float(law.sigma))
    images["micjax"] = solution.results["image"].data
    plain = nats(image, frames[asked.held_out], drift)
    for name, of in images.items():
        gain = nats(of, frames[asked.held_out], drift) - plain
        print(json.dumps({"held_out": asked.held_out, "image": name, "nats": gain}), flush=True)
    print(json.dumps({"said": solution.statements[0], "drift_px": drift.tolist()}))


if __name__ == "__main__":
    main()
