"""Points that a certainty map calls certain and that are wrong: Gwyddion's and micjax's.

    python docs/gwyddion_counts.py FOLDER

FOLDER holds the reference files of tests/test_tip.py, ref_SURFACE__TIP.npz, made with Gwyddion
2.62: `S` the surface, `T` the tip, `I` the image, `R` its erosion, `C` its certainty map.
Points within a tip size of the border are left out, because no scan proves anything there.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from micjax.physics.tips.dilation import certain, dilate, erode

jax.config.update("jax_enable_x64", True)
SURFACES = ("spheres", "pillars", "steps", "rough", "spikes", "tgt")
TIPS = ("parab", "spherecone", "asym", "double", "gwy_pyramid4", "gwy_cone", "gwy_ellpar")
OFF_NM = 1e-9


def counts(path: pathlib.Path) -> dict[str, float]:
    with np.load(path) as file:
        r = {key: jnp.asarray(file[key], float) for key in "STIRC"}
    m = len(r["T"])
    inner = (slice(m, -m), slice(m, -m))
    mask = certain(r["I"], r["T"])[0]
    gwyddions = r["C"] > 0
    false = gwyddions & (abs(r["R"] - r["S"]) > OFF_NM)
    return {
        "false, Gwyddion": int(false[inner].sum()),
        "false, micjax": int((mask & (abs(erode(r["I"], r["T"]) - r["S"]) > OFF_NM)).sum()),
        "share, Gwyddion": float(gwyddions[inner].mean()),
        "share, micjax": float(mask[inner].mean()),
        "worst image": float(abs(dilate(r["S"], r["T"], "replicate") - r["I"]).max()),
        "worst erosion": float(abs(erode(r["I"], r["T"], "replicate") - r["R"]).max()),
    }


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    rows = [counts(folder / f"ref_{s}__{t}.npz") for s in SURFACES for t in TIPS]
    of = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    print(f"{len(rows)} images")
    for who in ("Gwyddion", "micjax"):
        false = of[f"false, {who}"]
        print(f"{who}: {false.sum()} false points in {np.sum(false > 0)} images", end=", ")
        print(f"{100 * of[f'share, {who}'].mean():.1f} % of the points called certain")
    print(f"micjax - Gwyddion: image {of['worst image'].max():.1e} nm", end=", ")
    print(f"erosion {of['worst erosion'].max():.1e} nm")


if __name__ == "__main__":
    main()
