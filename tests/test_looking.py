import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.active.gp import deep as deep_kernel
from micjax.active.gp import process as gp
from micjax.active.learner.learner import Learner
from micjax.active.learner.looking import Patches, looking_model
from micjax.active.learner.space import SearchAxis, Space

SHAPE, SIDE = (12, 15), 3
IMAGE = np.random.default_rng(0).normal(size=SHAPE)
AXES = [SearchAxis("y", 0.0, 1e-6, "m"), SearchAxis("x", -2e-6, 2e-6, "m")]
GRID = np.stack(
    np.meshgrid(
        *(np.linspace(a.lower, a.upper, n) for a, n in zip(AXES, SHAPE, strict=True)),
        indexing="ij",
    ),
    axis=-1,
).reshape(-1, 2)
SPACE = Space(AXES, GRID)


def test_a_place_sees_the_patch_around_its_pixel():
    padded = np.pad(IMAGE, SIDE // 2, mode="reflect")
    sees = Patches(jnp.asarray(padded), SIDE)
    ny, nx = SHAPE
    iy, ix = np.array([0, 5, ny - 1]), np.array([nx - 1, 7, 0])
    nearly = np.stack([iy / (ny - 1), ix / (nx - 1)], axis=1) + 1e-3  # the nearest pixel counts
    seen = np.asarray(sees(jnp.asarray(nearly)))
    np.testing.assert_array_equal(seen[:, :2], nearly)
    patches = seen[:, 2:].reshape(-1, SIDE, SIDE)
    np.testing.assert_array_equal(patches[1], IMAGE[4:7, 6:9])
    np.testing.assert_array_equal(patches[:, 1, 1], IMAGE[iy, ix])
    assert patches[0, 0, 1] == IMAGE[1, nx - 1]  # mirrored at the border


def test_the_process_is_that_of_the_patches():
    """The same covariance as a deep process which is given the patches themselves."""
    model = looking_model(SPACE, IMAGE, side=SIDE)
    z = (IMAGE - IMAGE.mean()) / IMAGE.std()
    pixels, patches = deep_kernel.patches(z, SIDE)
    points = GRID.reshape(*SHAPE, 2)[pixels[:, 0], pixels[:, 1]]
    with jax.enable_x64(True):
        forward = model.process.forward
        kernel = forward.kernel.kernel  # without the part that looks
        points = jnp.asarray(points)
        seen = jnp.concatenate([forward.scaled(points), jnp.asarray(patches)], axis=1)
        np.testing.assert_allclose(
            forward.covariance(points[:7], points), kernel(seen[:7], seen), atol=1e-12
        )


def measured(image, **settings):
    """A learner that looks at `IMAGE` and finds the highest of what goes with it."""
    learner = Learner(
        SPACE,
        outcome="response",
        goal="find",
        wanted=10,
        model=looking_model(SPACE, IMAGE, side=SIDE, **settings),
        initial=6,
        seed=0,
    )
    known = {tuple(p): v for p, v in zip(GRID.tolist(), image.ravel(), strict=True)}
    while len(learner.data[1]) < 26:
        (point,) = learner.suggest(1)
        learner.ingest([{**point, "response": known[SPACE.numbers(point)]}])
    return learner


@pytest.mark.slow
def test_it_finds_what_the_image_tells():
    response = np.exp(1.5 * IMAGE + 0.3 * np.random.default_rng(1).normal(size=SHAPE))
    learner = measured(response, members=2)
    level = np.sort(response, axis=None)[-10]
    found = int(np.sum(learner.data[1] >= level))
    # 26 of 180 by chance hold 1.4 of the ten best
    assert found >= 7
    assert len(learner.belief.states) == 2
    predicted = learner.predict(GRID)
    inside = (predicted.lower <= response.ravel()) & (response.ravel() <= predicted.upper)
    assert 0.75 < inside.mean() <= 1.0
    assert gp.predict(learner.belief.states[0], GRID)[0].shape == (180,)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (IMAGE, {"side": 4}, "side 4 has no middle"),
        (IMAGE[:3], {"side": 9}, "too small for patches of 9"),
        (np.ones(SHAPE), {"side": 3}, "the same everywhere"),
        (np.where(IMAGE > 1.0, np.nan, IMAGE), {"side": 3}, "pixels of the image are not finite"),
    ],
)
def test_images_that_cannot_be_looked_at(image, options, message):
    with pytest.raises(ValueError, match=message):
        looking_model(SPACE, image, **options)


def test_a_search_needs_candidates_and_a_number():
    with pytest.raises(ValueError, match="needs candidates and how many"):
        Learner(Space(AXES), goal="find", wanted=3)
    with pytest.raises(ValueError, match="needs candidates and how many"):
        Learner(SPACE, goal="find")
    with pytest.raises(ValueError, match="an image has two axes"):
        looking_model(Space([SearchAxis("x")]), IMAGE)
