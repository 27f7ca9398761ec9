"""`particles`: what the network is told, the decoder, sizes, files."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import micjax
from micjax.nets.unet import UNet
from micjax.nets.weights import save_network
from micjax.problems import particles
from micjax.problems.particles.contrast import contrasts
from micjax.problems.particles.instances.decoder import BEND_PX, instance_loss, instances, targets
from micjax.problems.particles.instances.table import shapes
from micjax.problems.particles.network import seen
from micjax.problems.particles.segmentation import (
    Segmentation,
    against_rim,
    agreement,
    back,
    heads_of,
    merged,
    resized,
)
from micjax.problems.particles.show import overlaps
from micjax.problems.particles.simulated.domes import dilated, film, grains
from micjax.problems.particles.simulated.micrographs import (
    ASKED_PX,
    LEAST_SEEN,
    apart,
    micrograph,
)
from micjax.problems.particles.simulated.recorded import enlarged, halved, stored
from micjax.problems.particles.simulated.shapes import CHANCES, outlines, seen_from
from micjax.problems.particles.tuning import labels_in_boxes


def discs(size, middles, radii):
    y, x = np.indices((size, size))
    labels = np.zeros((size, size), int)
    for i, ((cy, cx), r) in enumerate(zip(middles, radii, strict=True)):
        labels[np.hypot(y - cy, x - cx) < r] = i + 1
    return labels


def perfect(labels):
    """Heads that say what is wanted."""
    wanted = targets(jnp.asarray(labels), 16)
    sure = jnp.where(wanted.foreground, 8.0, -8.0)
    flow = jnp.arcsinh(wanted.flow_px / BEND_PX)
    return jnp.concatenate([sure[..., None], wanted.log_radius[..., None], flow], -1), wanted


# --- the decoder --------------------------------------------------------------------------------


def test_instances_that_touch_are_told_apart():
    labels = discs(96, [(20, 20), (20, 39), (70, 60), (60, 12)], [10, 9, 24, 3])
    heads, _ = perfect(labels)
    split = instances(np.asarray(heads))
    assert split.labels.max() == 4
    assert overlaps(split.labels, labels).min() > 0.98
    assert split.score.min() > 0.9


def test_a_flow_that_is_off_by_a_tenth_changes_nothing():
    labels = discs(96, [(20, 20), (20, 43), (70, 60)], [10, 12, 22])
    heads, _ = perfect(labels)
    noise = 0.1 * np.random.default_rng(0).standard_normal(heads.shape)
    assert overlaps(instances(np.asarray(heads) + noise).labels, labels).min() > 0.95


def test_nothing_is_no_instance():
    split = instances(np.full((32, 32, 4), -3.0))
    assert split.labels.max() == 0 and len(split.score) == 0


def test_the_loss_is_least_at_the_truth_and_blind_where_it_is_told_to_be():
    labels = discs(64, [(20, 20), (45, 40)], [9, 12])
    heads, wanted = perfect(labels)
    rng = np.random.default_rng(1)
    best = float(instance_loss(heads, wanted))
    for head in range(4):
        off = heads.at[..., head].add(jnp.asarray(rng.standard_normal(labels.shape)) * 5.0)
        assert float(instance_loss(off, wanted)) > best + 0.05
    hidden = np.where(np.indices(labels.shape)[0] < 30, -1, labels)
    other = heads.at[:30].set(5.0)
    losses = [float(instance_loss(h, targets(jnp.asarray(hidden), 16))) for h in (heads, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


# --- simulated images -----------------------------------------------------------------------------


def test_outlines_have_the_area_they_should():
    chance = jax.random.uniform(jax.random.key(0), (12, CHANCES))
    run = jax.jit(outlines)
    outline = run(chance, jnp.full(12, 0.5), jnp.full(12, 20.0))
    y, x = jnp.meshgrid(*2 * [jnp.arange(-90.0, 91.0)], indexing="ij")
    inside = jax.jit(jax.vmap(lambda o: seen_from(o, y, x)[1] > 0))(outline)
    area = np.asarray(inside.sum(axis=(1, 2)))
    np.testing.assert_allclose(area, np.pi * 400.0, rtol=0.08)
    assert np.ptp(np.asarray(outline.inner_px)) > 2.0


def test_particles_are_pushed_apart():
    place = apart(jnp.asarray([[0.0, 0.0], [1.0, 0.5], [50.0, 50.0]]), jnp.full((3, 3), 10.0))
    assert np.hypot(*(place[0] - place[1])) > 8.0
    np.testing.assert_allclose(place[2], 50.0, atol=1e-5)


def test_a_micrograph_has_brighter_particles_and_no_two_are_alike():
    draw = jax.jit(jax.vmap(lambda k: micrograph(k, 64)))
    drawn = draw(jax.random.split(jax.random.key(1), 16))
    image, labels = np.asarray(drawn.image), np.asarray(drawn.labels)
    assert np.isfinite(image).all() and labels.min() == -1 and (labels == 0).any()
    off = [
        i[la > 0].mean() - i[la == 0].mean()
        for i, la in zip(image, labels, strict=True)
        if (la > 0).any() and (la == 0).any()
    ]
    assert len(off) > 8 and np.mean(np.array(off) > 0) > 0.8
    assert np.abs(image[0] - image[1]).max() > 0.1


def test_particles_far_too_large_or_too_small_are_background():
    draw = jax.jit(jax.vmap(lambda k: micrograph(k, 128)))
    labels = np.asarray(draw(jax.random.split(jax.random.key(3), 24)).labels)
    areas = [np.bincount(la[la > 0]) for la in labels]
    area = np.concatenate([a[a > 0] for a in areas])
    assert area.max() < 1.1 * np.pi / 4 * ASKED_PX[1] ** 2
    assert area.min() >= LEAST_SEEN * 0.9 * np.pi / 4 * ASKED_PX[0] ** 2
    assert sum(not (la > 0).any() for la in labels) >= 1


def test_what_is_stored_has_few_grey_levels_and_compression_takes_the_fine_ones():
    image = np.random.default_rng(8).normal(2.0, 1.0, (64, 64)).astype(np.float32)
    run = jax.jit(stored)
    grey = np.asarray(run(image, jnp.float32(15.0), jnp.float32(0.0)))
    assert len(np.unique(np.round(grey, 4))) <= 16
    np.testing.assert_allclose(grey, image, atol=0.51 * np.ptp(image) / 15.0)
    fine, coarse = (np.asarray(run(image, jnp.float32(255.0), jnp.float32(c))) for c in (0.2, 4.0))
    assert np.std(fine - image) < 0.3 * np.std(coarse - image)
    whole = image.reshape(8, 8, 8, 8).mean(axis=(1, 3))  # means of squares are kept longest
    np.testing.assert_allclose(coarse.reshape(8, 8, 8, 8).mean((1, 3)), whole, atol=0.2)


def test_a_film_has_no_gaps_and_a_tip_widens_it():
    drawn = jax.jit(film, static_argnums=1)(jax.random.key(2), 64)
    assert np.isfinite(drawn.image).all() and drawn.labels.min() >= 1
    assert drawn.labels.max() <= grains(64)
    spike = np.zeros((32, 32))
    spike[16, 16] = 1.0
    parabola = 1.0 - 0.05 * ((np.indices((32, 32)) - 16) ** 2).sum(0)
    wide = np.asarray(jax.jit(dilated)(jnp.asarray(spike), jnp.asarray(0.05)))
    near = np.s_[13:20, 13:20]
    np.testing.assert_allclose(wide[near], np.maximum(parabola, 0.0)[near], atol=1e-6)


def test_what_is_seen_has_no_unit():
    image = np.random.default_rng(2).normal(3.0, 1.0, (64, 64))
    views = [jax.jit(seen)(jnp.asarray(a * image + b)) for a, b in ((1, 0), (1e9, 5.0), (1e-9, 0))]
    for other in views[1:]:
        np.testing.assert_allclose(other, views[0], atol=1e-3)


# --- sizes ----------------------------------------------------------------------------------------


def test_sizes_of_a_disc_a_square_and_an_ellipse():
    y, x = np.indices((128, 128))
    labels = np.zeros((128, 128), int)
    labels[np.hypot(y - 30, x - 30) < 20.2] = 1
    labels[70:110, 20:60] = 2
    labels[np.hypot((y - 60) / 30.0, (x - 100) / 15.0) < 1.01] = 3
    of = shapes(labels)
    np.testing.assert_allclose(of.diameter_px[0], 40.0, rtol=0.01)
    # the corners of pixels stand out by up to half a diagonal on each side
    np.testing.assert_allclose(of.longest_px, [40.4, np.hypot(40, 40), 60.6], atol=1.42)
    np.testing.assert_allclose(of.shortest_px, [40.4, 40.0, 30.3], atol=1.0)
    np.testing.assert_allclose(of.aspect, [1.0, 1.0, 2.0], rtol=0.02)
    assert of.solidity.min() > 0.95 and not of.cut.any()
    np.testing.assert_allclose(of.perimeter_px[0], 2 * np.pi * 20.0, rtol=0.05)


def test_two_lobes_are_not_solid_and_an_edge_cuts():
    labels = np.zeros((64, 64), int)
    labels[10:40, 10:20] = 1
    labels[30:40, 10:40] = 1
    labels[50:, 50:] = 2
    of = shapes(labels)
    assert of.solidity[0] == pytest.approx(500.0 / 700.0, rel=0.05)  # its hull by hand
    np.testing.assert_array_equal(of.cut, [False, True])


def test_contrast_and_its_error():
    """On noise alone, contrasts are as large as they are said to be."""
    rng, labels = np.random.default_rng(3), np.zeros((256, 256), int)
    for i, (y, x) in enumerate(np.ndindex(8, 8)):
        labels[32 * y + 10 : 32 * y + 20, 32 * x + 10 : 32 * x + 20] = i + 1
    noise = rng.standard_normal(labels.shape)
    plain = contrasts(noise, labels)
    assert np.std(plain.value / plain.error) == pytest.approx(1.0, abs=0.25)
    raised = contrasts(1e9 * (noise + 2.0 * (labels > 0)), labels)
    assert raised.value.mean() == pytest.approx(2e9, rel=0.05)
    assert raised.sigma == pytest.approx(1e9, rel=0.1)


def test_an_image_at_another_scale():
    image = np.random.default_rng(4).random((50, 70))
    np.testing.assert_allclose(resized(image, 0.5), image.reshape(25, 2, 35, 2).mean((1, 3)))
    assert resized(image, 2.0).shape == (100, 140)
    labels = discs(64, [(20, 20), (45, 40)], [9, 12])
    np.testing.assert_array_equal(back(np.kron(labels, np.ones((2, 2), int)), (64, 64)), labels)


def at_zoom(labels, score, zoom, step=1.0):
    n = len(score)
    return Segmentation(labels, np.array(score), np.ones(n), np.full(n, zoom), np.full(n, step))


def test_zooms_agree_where_they_see_the_same():
    large = discs(96, [(48, 48), (20, 20)], [20, 6])
    moved = discs(96, [(48, 49), (20, 26)], [20, 6])
    ratio = overlaps(large, moved)
    told = agreement(at_zoom(large, [0.9, 0.9], 0.5), at_zoom(moved, [0.8, 0.8], 1.0))
    assert ratio.max() > 0.9 and ratio.min() < 0.5
    np.testing.assert_allclose(told, [0.8 * ratio.max(), 0.0])
    none = at_zoom(np.zeros_like(large), [], 1.0)
    np.testing.assert_array_equal(agreement(at_zoom(large, [0.9, 0.9], 0.5), none), [0.0, 0.0])
    assert len(agreement(none, none)) == 0


def test_of_several_zooms_those_that_agree_are_believed():
    truth = discs(96, [(48, 48), (20, 20), (70, 20)], [14, 6, 7])
    pieces = np.where(truth == 1, 1 + (np.indices((96, 96))[1] < 48), 0)  # two halves
    wrong = discs(96, [(10, 60), (20, 70), (80, 80)], [5, 5, 5])
    parts = [
        at_zoom(truth, [0.6, 0.6, 0.6], 0.5),
        at_zoom(truth, [0.7, 0.7, 0.7], 1.0),
        at_zoom(pieces, [0.9, 0.9], 2.0),
        at_zoom(wrong, [0.9, 0.9, 0.9], 0.25),
    ]
    split = merged(parts, 0.4)
    assert split.labels.max() == 3 and overlaps(split.labels, truth).min() == 1.0
    np.testing.assert_allclose(split.score, 1.0)
    alone = merged([parts[1], at_zoom(np.zeros_like(truth), [], 2.0)], 0.4)
    np.testing.assert_allclose(alone.score, 0.7)
    assert len(merged([parts[1], at_zoom(np.zeros_like(truth), [], 2.0)], 0.8).score) == 0


def test_of_instances_that_share_pixels_the_better_one_has_them():
    first = discs(96, [(48, 48)], [20])
    beside = discs(96, [(48, 72)], [20])
    inside = discs(96, [(48, 50)], [9])
    for other, left in ((beside, 2), (inside, 1)):
        parts = [at_zoom(first, [0.9], 0.5), at_zoom(other, [0.6], 1.0)]
        split = merged(parts, 0.0)
        assert split.labels.max() == len(split.score) == left
        np.testing.assert_array_equal(split.labels == 1, first == 1)


def test_what_most_are_not_is_hardly_believed():
    labels = discs(96, [(20, 20), (20, 70), (70, 20), (70, 70)], [8, 8, 8, 8])
    step = np.array([1.0, 1.0, 1.0, -1.0])
    part = at_zoom(labels, [0.9, 0.9, 0.9, 0.9], 1.0)._replace(step=step)
    for polarity, left in (("auto", 3), ("bright", 3), ("dark", 1), ("both", 4)):
        assert len(merged([part], 0.4, polarity).score) == left
    np.testing.assert_allclose(merged([part], 0.1, "auto").score, [0.9, 0.9, 0.9, 0.3])
    film = np.where(np.indices((96, 96))[1] < 48, 1, 2)
    part = at_zoom(film, [0.9, 0.9], 1.0)._replace(step=np.array([1.0, -1.0]))
    assert len(merged([part], 0.4, "bright").score) == 2  # bright against what


def test_bright_or_dark_against_the_rim():
    labels = discs(64, [(20, 20), (20, 31), (45, 40)], [6, 5, 9])
    height = np.array([0.0, 1.0, 3.0, -2.0])[labels]
    np.testing.assert_array_equal(against_rim(height, labels) > 0, [True, True, False])
    np.testing.assert_array_equal(against_rim(-height, labels) > 0, [False, False, True])
    assert against_rim(1e9 * height, labels)[2] == pytest.approx(-2e9)


def test_what_has_next_to_no_contrast_is_no_instance_unless_all_is_film():
    labels = discs(96, [(20, 20), (20, 70), (70, 20), (70, 70)], [8, 8, 8, 8])
    for scale in (1e-9, 1.0, 1e9):
        part = at_zoom(labels, [0.9, 0.9, 0.9, 0.9], 1.0)
        part = part._replace(step=scale * np.array([1.0, 0.8, 2.0, 0.05]))
        assert len(merged([part], 0.4, "bright").score) == 3
        assert len(merged([part], 0.4, "both").score) == 4
    film = np.where(np.indices((96, 96))[1] < 48, 1, 2)
    part = at_zoom(film, [0.9, 0.9], 1.0)._replace(step=np.array([1.0, 0.01]))
    assert len(merged([part], 0.4, "auto").score) == 2


def test_boxes_become_ellipses_with_small_ones_on_top():
    labels = labels_in_boxes(np.array([[10.0, 10, 50, 40], [20, 20, 28, 28]]), (64, 64))
    assert set(np.unique(labels)) == {-1, 0, 1, 2}
    assert labels[24, 24] == 2 and labels[40, 25] == 1 and labels[5, 5] == 0
    assert labels[10, 25] == -1


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((40, 40)), "all values are 1"),
        (np.where(np.eye(40), np.nan, 1.0), "40 of 1600 values are not finite"),
        (np.random.default_rng(0).random((20, 40)), "20 x 40 pixels; the network needs at least"),
        (np.random.default_rng(0).random((2, 40, 40)), "an image with one real value a pixel"),
    ],
)
def test_files_that_are_no_images(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=message):
        particles.load(tmp_path / "a.npy")


def test_a_figure_in_colours_is_none(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="in colours"):
        particles.load(tmp_path / "a.jpg")
    grey = np.random.default_rng(5).integers(0, 255, (64, 48)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "b.jpg")
    options, x, y = particles.load(tmp_path / "b.jpg", pixel_nm=0.5)
    assert y.shape == (64, 48) and options["pixel_nm"] == (0.5, 0.5)


TINY = {"channels_in": 3, "channels_out": 4, "width": 8, "depth": 1, "fold": 4}


def test_networks_for_something_else(tmp_path, caplog):
    other = {"width": 8, "depth": 1}
    save_network(tmp_path / "other.h5", UNet(**other, rngs=nnx.Rngs(0)), other, {})
    with pytest.raises(ValueError, match="from 1 to 1 channels; one from 3 to 4 is needed"):
        particles.problem(net=str(tmp_path / "other.h5"))
    with pytest.raises(FileNotFoundError, match="no such network"):
        particles.problem(net=str(tmp_path / "none.h5"))
    save_network(tmp_path / "nm.h5", UNet(**TINY, rngs=nnx.Rngs(0)), TINY, {"pixel_nm": 0.1})
    particles.problem(net=str(tmp_path / "nm.h5"), pixel_nm=0.5)
    assert "pixels of 0.1 nm, these are of 0.5 nm" in caplog.text


# --- all of it ------------------------------------------------------------------------------------


def image_of_discs(scale=1.0):
    labels = discs(128, [(30, 30), (80, 40), (50, 90), (100, 100)], [9, 12, 7, 10])
    noise = np.random.default_rng(6).normal(0.0, 0.1, labels.shape)
    return scale * ((labels > 0) + noise), labels


def test_two_looks_do_not_know_which_way_up_an_image_is():
    image = np.random.default_rng(5).random((64, 64)) + (discs(64, [(30, 26)], [9]) > 0)
    network = UNet(3, 4, width=8, depth=1, rngs=nnx.Rngs(0))
    network.last.kernel.set_value(jax.random.normal(jax.random.key(1), network.last.kernel.shape))
    two, other = (heads_of(network, a, 2) for a in (image, image[::-1, ::-1]))
    np.testing.assert_allclose(other[::-1, ::-1] * [1, 1, -1, -1], two, atol=1e-4)
    single = heads_of(network, image)
    assert np.abs(single - two).max() > 0.01
    assert np.abs(single - two).max() < np.abs(single).max()


def test_an_enlarged_image_has_the_pixels_it_came_from():
    image = jnp.asarray(np.random.default_rng(6).random((16, 24)), jnp.float32)
    large = enlarged(halved(image))
    assert large.shape == image.shape
    np.testing.assert_allclose(large.mean(), image.mean(), rtol=0.02)
    inner = np.asarray(halved(large))[1:-1, 1:-1]  # linear between pixels: a little smoother
    smooth = np.asarray(halved(image))
    assert np.corrcoef(inner.ravel(), smooth[1:-1, 1:-1].ravel())[0, 1] > 0.9


def test_the_shipped_network_finds_discs_of_any_unit_and_polarity():
    bright, dark = "4 of them bright, 0 dark", "0 of them bright, 4 dark"
    for scale, told in ((-1e-9, dark), (1e9, bright)):
        image, labels = image_of_discs(scale)
        problem = particles.problem(128, 128, 0.1 * abs(scale))
        solution = micjax.solve(
            particles, problem, jnp.zeros(1, int), jnp.asarray(image), key=jax.random.key(0)
        )
        truth = particles.problem(128, 128).at({"forward.signal": labels.astype(float)})
        row = particles.compare(solution, None, image, truth)[0]
        assert row["matched"] == 4
        assert f"4 instances, {told}" in solution.statements[0]
        assert solution.table[0]["contrast"] == pytest.approx(scale, rel=0.3)
    for figure in particles.figures(solution, None, image, truth).values():
        figure()


def test_labels_of_another_program(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from scipy.ndimage import label\n\ndef blobs(image):\n    return label(image > 0.5)[0]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    image, labels = image_of_discs()
    problem = particles.problem(128, 128, 0.1, labels="mine:blobs")
    solution = micjax.solve(
        particles, problem, jnp.zeros(1, int), jnp.asarray(image), key=jax.random.key(0)
    )
    assert len(solution.table) == labels.max()
    assert "as mine:blobs has it" in solution.statements[0]
    for row in solution.table:  # how sure another program is nobody knows
        assert row["score"] is row["diameter sd"] is row["aspect sd"] is None
        assert row["contrast sd"] > 0.0
    for statement in solution.statements:
        assert "network" not in statement
    for setting in ({"net": "a.h5"}, {"polarity": "dark"}):
        with pytest.raises(ValueError, match="only, which labels = 'mine:blobs' replaces"):
            particles.problem(labels="mine:blobs", **setting)
    for engine in ({"zoom": 1.0}, {"least_score": 0.7}):
        with pytest.raises(ValueError, match="only, which labels = 'mine:blobs' replaces"):
            particles.stages(problem, jnp.zeros(1, int), jnp.asarray(image), **engine)
    with pytest.raises(ValueError, match="not below the current folder"):
        particles.problem(labels="skimage.measure:label")
    sys.modules.pop("mine")
