"""Which crystal an image is of, among twenty: images of atomagined (MaterialEyes), by Prismatic.

    python experiments/phase_map/naming.py FOLDER    # of .h5 files with haadf/ and projection/

Images are 26 Å wide, clean and blurred with a background. The candidates are the columns of
each file, all as bright as each other (their elements are not in the files), eight well-known
structures along an axis, and random lattices. The image's own spectrum is compared with theirs, in
windows of 13 Å. No constant was chosen on these images. Prints one JSON line for each.
"""

import json
import pathlib
import sys

import h5py
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import specimens

from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.unmixing.naming import lattice_template, likeness
from micjax.physics.patches.windows import Hann

EDGE_A, CANDIDATES, WIDTH_A = 26.0, 20, 0.5
IMAGES = {"clean": "stem00-clean", "blurred": "stem00-blbk1"}


def template(image, polar: Polar):
    """The mean spectrum of all patches, of length 1."""
    image = jnp.asarray((image - image.mean()) / image.std())
    rings = polar(polar.local(image))
    mean = jnp.mean(rings.reshape(-1, *rings.shape[2:]), axis=0)
    return mean / jnp.sqrt(jnp.sum(mean**2))


def of_columns(places_px, shape, sampling_A: float):
    """An image of Gaussians at these places."""
    laid = np.zeros(shape)
    y, x = np.round(places_px).astype(int).T
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    np.add.at(laid, (y[inside], x[inside]), 1.0)
    return scipy.ndimage.gaussian_filter(laid, WIDTH_A / sampling_A)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    files = sorted(pathlib.Path(sys.argv[1]).glob("*.h5"))
    images, known, polar = {}, {}, None
    for file in files:
        with h5py.File(file) as of:
            seen = {n: np.asarray(of[f"haadf/{path}"], float) for n, path in IMAGES.items()}
            places = np.asarray(of["projection/full_coords"], float)
        shape = seen["clean"].shape
        sampling_A = EDGE_A / shape[0]
        polar = polar or Polar(LocalSpectra(Hann(), shape[0] // 2, 16, sampling_A, 0.9), 0.15)
        images |= {(file.stem, n): v for n, v in seen.items()}
        known[file.stem] = template(of_columns(places, shape, sampling_A), polar)
    rng = np.random.default_rng(0)
    others = specimens.prototypes()
    while len(known) + len(others) < CANDIDATES:
        others[f"random {len(others)}"] = specimens.random_lattice(rng)
    known |= {n: lattice_template(v, polar, WIDTH_A) for n, v in others.items()}
    names, templates = list(known), jnp.stack(list(known.values()))
    right = 0
    for (name, kind), image in images.items():
        cosines = likeness(template(image, polar)[None], templates)[0]
        order = np.argsort(-cosines)
        right += names[order[0]] == name
        row = {"file": name, "image": kind, "named": names[order[0]], "of": len(names)}
        row |= {"cosine": float(cosines[order[0]]), "next": float(cosines[order[1]])}
        print(json.dumps(row))
    print(json.dumps({"right": right, "of": len(images)}))


if __name__ == "__main__":
    main()
