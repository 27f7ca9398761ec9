"""The 20 cases of `experiments/tip_removal`, with the blind estimates that the network begins with.

    python experiments/tip_removal_net/cases.py --data FOLDER --to FOLDER

Scans, noise and keys are those of that experiment. Of each case one .npz file is written: the scan,
its truth, the noise that was estimated, the blind tip and the surface of `micjax fit tip`.
"""

import argparse
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np

from micjax.physics.tips.dilation import dilate
from micjax.physics.tips.evidence import noise_sigma_nm

BEFORE = pathlib.Path(__file__).parents[1] / "tip_removal" / "run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="of the AFM scans")
    parser.add_argument("--to", type=pathlib.Path, required=True)
    given = parser.parse_args()
    before = runpy.run_path(str(BEFORE))
    given.to.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(0)
    for surface_name, (truth, pixel_nm) in before["surfaces"](given.data).items():
        for tip_name, kernel in before["tips"]().items():
            name, key = f"{surface_name}-{tip_name}", jax.random.fold_in(key, 1)
            path = given.to / f"{name}.npz"
            if path.exists():
                continue
            tip = kernel * np.ptp(truth)
            noise_key, _, blind_key = jax.random.split(key, 3)
            clean = np.asarray(dilate(jnp.asarray(truth), jnp.asarray(tip)))
            noise = np.asarray(jax.random.normal(noise_key, clean.shape))
            y = (clean + 0.005 * np.ptp(truth) * noise).astype(np.float32)
            sigma = float(noise_sigma_nm(jnp.asarray(y)[None]))
            blind = before["solve"](y, pixel_nm, sigma, blind_key)
            np.savez(
                path,
                y=y,
                truth=truth,
                tip=tip,
                pixel_nm=np.asarray(pixel_nm),
                sigma=sigma,
                sigma_true=0.005 * np.ptp(truth),
                blind_tip=np.asarray(blind.extra["tip"]),
                classical=blind.results["classical_surface"].data,
                surface=blind.results["surface"].data,
                certain=blind.results["certain"].data,
            )
            print(name, flush=True)


if __name__ == "__main__":
    main()
