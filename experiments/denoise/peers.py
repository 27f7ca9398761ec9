"""Other programs on the images of images.py: BM3D, total variation (needs bm3d and scikit-image).

    PYTHON experiments/denoise/peers.py FOLDER

Both see square roots of counts (Anscombe 1948) and are turned back without bias (Makitalo 2011).
Total variation has the strength that is best by the truth. Prints one JSON line an image.
"""

import argparse
import json
import pathlib
import time

import bm3d
import numpy as np
from skimage.restoration import denoise_tv_chambolle

STRENGTHS = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0)


def turned_back(seen: np.ndarray) -> np.ndarray:
    """The mean of counts, from that of 2 sqrt(counts + 3 / 8) (Makitalo 2011, eq. 6)."""
    d = np.maximum(seen, 2.0 * np.sqrt(0.375))
    root = np.sqrt(1.5)
    series = 0.25 * d**2 + 0.25 * root / d - 1.375 / d**2 + 0.625 * root / d**3 - 0.125
    return np.maximum(series, 0.0)


def rms(image: np.ndarray, mean: np.ndarray) -> float:
    return float(np.sqrt(np.mean((image - mean) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    for path in sorted(parser.parse_args().folder.glob("*.npz")):
        with np.load(path) as file:
            counts, mean = file["counts"], file["mean"]
        seen, begun = 2.0 * np.sqrt(counts + 0.375), time.process_time()
        matched = turned_back(bm3d.bm3d(seen, sigma_psd=1.0))
        taken = time.process_time() - begun
        flat = [turned_back(denoise_tv_chambolle(seen, weight=w)) for w in STRENGTHS]
        seed, dose = path.stem.split("_")
        row = {"seed": int(seed), "dose": float(dose), "bm3d": rms(matched, mean)}
        row |= {"bm3d_s": taken, "tv": min(rms(image, mean) for image in flat)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
