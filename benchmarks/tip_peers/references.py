"""What Gwyddion makes of small surfaces and tips, for the tests: `tests/references/gwyddion.npz`.

    python benchmarks/tip_peers/references.py

Six surfaces of 36 x 40 pixels of 1 nm under six tips: image, erosion of the image, certainty map;
of some images also the blind estimate of the tip. Surfaces and tips are whole picometres, hence
also images and erosions, which are kept as integers: small files, and nothing is lost. Gwyddion
itself is given nanometres in float64. The tips of its list are kept as it makes them as well.
"""

import pathlib

import gwyddion
import numpy as np
import scipy.ndimage

FILE = pathlib.Path(__file__).parents[2] / "tests/references/gwyddion.npz"
SHAPE, TIP_SHAPE = (36, 40), (11, 11)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
PM_PER_NM = 1000
BLIND = ("spikes_asymmetric", "spikes_parabola", "cones_asymmetric", "cones_double")


def whole_pm(heights_nm) -> np.ndarray:
    return np.round(PM_PER_NM * np.asarray(heights_nm)).astype(np.int32)


def kept_pm(heights_nm) -> np.ndarray:
    """Whole picometres that came out of Gwyddion."""
    whole = whole_pm(heights_nm)
    np.testing.assert_allclose(heights_nm, whole / PM_PER_NM, rtol=0, atol=1e-12)
    return whole


def spheres():
    random = np.random.default_rng(11)
    surface = np.zeros(SHAPE)
    for _ in range(5):
        y, x, radius = random.uniform(8, SHAPE[0] - 8, 2).tolist() + [random.uniform(3, 6)]
        d2 = (Y - y) ** 2 + (X - x) ** 2
        ball = radius + np.sqrt(np.maximum(radius**2 - d2, 0))
        surface = np.maximum(surface, np.where(d2 < radius**2, ball, 0))
    return surface


def pillars():
    surface = np.zeros(SHAPE)
    for y in (4, 20):
        for x in (5, 22):
            surface[y : y + 7, x : x + 9] = 8.0 + 0.1 * (y - x)
    return surface


def steps():
    along_x = np.where(X < 13, 0.0, np.where(X < 25, 4.0, 9.0))
    return along_x + np.where((Y > 9) & (Y < 20), 3.0, 0.0)


def rough():
    noise = np.random.default_rng(5).standard_normal(SHAPE)
    smooth = scipy.ndimage.gaussian_filter(noise, 2.0, mode="wrap")
    return 3.0 * smooth / smooth.std()


def spikes():
    random = np.random.default_rng(1)
    surface = np.zeros(SHAPE)
    surface[random.integers(12, 24, 6), random.integers(12, 28, 6)] = random.uniform(8, 12, 6)
    return surface


def cones():
    """A tip characteriser."""
    places = [(y, x) for y in (12, 24) for x in (13, 27)]
    return np.max([np.maximum(12 - 4.0 * np.hypot(Y - y, X - x), 0) for y, x in places], axis=0)


def asymmetric():
    y, x = np.mgrid[-5:6, -5:6]
    return -(np.where(x > 0, 0.25, 0.08) * x**2 + np.where(y > 0, 0.05, 0.2) * y**2)


def double():
    """A second apex 4 nm along +x, 1.5 nm lower."""
    whole = gwyddion.model("Parabola", (21, 21), 2.0)
    return np.maximum(whole[5:16, 5:16], whole[5:16, 1:12] - 1.5)


SURFACES = {f.__name__: f for f in (spheres, pillars, steps, rough, spikes, cones)}
MODELS = {
    "parabola": lambda: gwyddion.model("Parabola", TIP_SHAPE, 3.0),
    "cone": lambda: gwyddion.model("Cone", TIP_SHAPE, 3.0, np.radians(20)),
    "double": double,
    "pyramid": lambda: gwyddion.model("Pyramid", TIP_SHAPE, 3.0, 0.3, 4, np.radians(35)),
    "elliptical": lambda: gwyddion.model("Elliptical parabola", TIP_SHAPE, 3.0, 0.4, 2.0),
}
TIPS = MODELS | {"asymmetric": asymmetric}


def main() -> None:
    gwyddion.set_threads(0)
    kept = {f"model_{name}_nm": make() for name, make in MODELS.items()}
    surfaces = {name: whole_pm(make()) for name, make in SURFACES.items()}
    tips = {name: whole_pm(make()) for name, make in TIPS.items()}
    kept |= {f"surface_{name}_pm": surface for name, surface in surfaces.items()}
    kept |= {f"tip_{name}_pm": tip for name, tip in tips.items()}
    for surface_name, surface in surfaces.items():
        for tip_name, tip in tips.items():
            pair, tip_nm = f"{surface_name}_{tip_name}", tip / PM_PER_NM
            image = kept_pm(gwyddion.dilation(tip_nm, surface / PM_PER_NM))
            image_nm = image / PM_PER_NM
            kept[f"image_{pair}_pm"] = image
            kept[f"erosion_{pair}_pm"] = kept_pm(gwyddion.erosion(tip_nm, image_nm))
            kept[f"certain_{pair}"] = gwyddion.cmap(tip_nm, image_nm) > 0
            if pair in BLIND:
                kept[f"blind_{pair}_nm"] = gwyddion.blind(image_nm, TIP_SHAPE, 1e-9)
    np.savez_compressed(FILE, **kept)


if __name__ == "__main__":
    main()
