"""Beside Gwyddion: what tests/references/gwyddion.npz holds, made by
benchmarks/tip_peers/references.py. Heights are whole picometres, so images are as well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.tips import dilation as physics
from micjax.physics.tips.shapes import FreeForm, Multiple, Paraboloid, ReflectedTip, SphereCone
from micjax.physics.tips.villarrubia import villarrubia

SURFACES = ("spheres", "pillars", "steps", "rough", "spikes", "cones")
TIPS = ("parabola", "cone", "double", "pyramid", "elliptical", "asymmetric")
BLIND = ("spikes_asymmetric", "spikes_parabola", "cones_asymmetric", "cones_double")
MARGIN = 11  # of a tip
INSIDE = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))

dilate = jax.jit(physics.dilate, static_argnames="edge")
erode = jax.jit(physics.erode, static_argnames="edge")
certain = jax.jit(physics.certain)


@pytest.fixture(scope="module")
def gwyddion(references):
    """Arrays of one surface and tip by their first letters, in nm."""
    arrays = references("gwyddion")
    nm = {k.removesuffix("_pm"): 1e-3 * v for k, v in arrays.items() if k.endswith("_pm")}

    def of(surface, tip):
        pair = f"{surface}_{tip}"
        heights = nm[f"surface_{surface}"], nm[f"tip_{tip}"], nm[f"image_{pair}"]
        return *heights, nm[f"erosion_{pair}"], arrays[f"certain_{pair}"]

    return of


@pytest.mark.parametrize("tip", TIPS)
@pytest.mark.parametrize("surface", SURFACES)
def test_images_and_erosions(gwyddion, surface, tip):
    surface, tip, image, upper, _ = gwyddion(surface, tip)
    np.testing.assert_allclose(dilate(surface, tip, "replicate"), image, rtol=0, atol=1e-12)
    np.testing.assert_allclose(erode(image, tip, "replicate"), upper, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tip", TIPS)
@pytest.mark.parametrize("surface", SURFACES)
def test_certain_points_are_the_surface(gwyddion, surface, tip):
    surface, tip, image, _, _ = gwyddion(surface, tip)
    mask, multiplicity = certain(image, tip)
    # Gwyddion's image continues the border pixels: there it is no image at an open edge
    assert multiplicity[5:-5, 5:-5].min() >= 1
    wrong = np.abs(erode(image, tip) - surface) > 1e-9
    assert np.sum(mask & wrong) == 0


def test_about_as_much_is_certain_as_gwyddion_believes(gwyddion):
    """Away from the border, where a scan proves nothing; Gwyddion's map has false points."""
    ours, theirs, false = [], [], 0
    for name in SURFACES:
        for tip_name in TIPS:
            surface, tip, image, upper, believed = gwyddion(name, tip_name)
            ours.append(np.mean(certain(image, tip)[0][INSIDE]))
            theirs.append(np.mean(believed[INSIDE]))
            false += np.sum((believed & (np.abs(upper - surface) > 1e-9))[INSIDE])
    assert np.mean(ours) > 0.9 * np.mean(theirs)
    assert false > 100


@pytest.mark.parametrize("pair", BLIND)
def test_blind_estimates_come_reflected(references, gwyddion, pair):
    """Gwyddion's to a step of its heights, a ten-thousandth of their range; ours exactly."""
    _, tip, image, _, _ = gwyddion(*pair.split("_"))
    met = tip > -0.8 * np.ptp(image)  # deeper pixels never touch
    blind = references("gwyddion")[f"blind_{pair}_nm"]
    as_tip = np.asarray(ReflectedTip(blind).reflected()())
    ours, _ = villarrubia(jnp.asarray(image)[None], tip.shape, 1e-9)
    assert np.sqrt(np.mean((as_tip - tip)[met] ** 2)) < 1e-3
    assert np.sqrt(np.mean((ours - tip)[met] ** 2)) < 1e-6
    if "parabola" not in pair:
        assert np.sqrt(np.mean((blind - tip)[met] ** 2)) > 1
    back = FreeForm(blind).reflected().reflected()
    np.testing.assert_array_equal(back(), blind)


def two_paraboloids():
    apex = Paraboloid(2.0)
    return Multiple((apex, apex), [[0.0, 4.0]], [1.5], size=11)


SHAPES = {
    "parabola": lambda: Paraboloid(3.0, 1.0, 11),
    "cone": lambda: SphereCone(3.0, 20.0, 1.0, 11),
    "double": two_paraboloids,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(references, name):
    found = jax.jit(lambda: SHAPES[name]()())()
    np.testing.assert_allclose(
        found, references("gwyddion")[f"model_{name}_nm"], rtol=0, atol=1e-12
    )
