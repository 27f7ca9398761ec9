import dataclasses

import jax
import numpy as np
import pytest

from micjax.problems import autofocus as af

SHAPE = (64, 64)
FOUND_A = {"C10": 350.0, "C12a": -60.0, "C12b": 45.0}
RULES = af.Rules(images=4, C10_step_A=900.0, C12_step_A=300.0)


@pytest.fixture(scope="module")
def small():
    return af.problem(*SHAPE, C10_limit_A=1000.0, C12_limit_A=300.0)


@pytest.fixture(scope="module")
def focused(small):
    """A microscope, and the record of its autofocus."""
    instrument = af.microscope(5, FOUND_A, SHAPE)
    keys = iter(jax.random.split(jax.random.key(0), 10))
    return instrument, af.autofocus(lambda s: instrument.image(next(keys), s), small, 0, RULES)


@pytest.mark.slow
def test_it_focuses_within_its_bounds(focused):
    instrument, record = focused
    last = record.decisions[-1]
    assert last.done and len(record.images) <= RULES.images
    assert RULES.met(instrument.residual_A(np.array(last.setting_A)))
    assert not RULES.met(instrument.residual_A(np.zeros(3)))  # it had something to do
    moves = np.abs(np.diff([*record.settings_A, last.setting_A], axis=0))
    assert np.all(moves <= np.array([900.0, 300.0, 300.0]) + 1e-6)


@pytest.mark.slow
def test_every_decision_replays_from_its_record(focused, small, tmp_path):
    _, record = focused
    record.save(tmp_path / "record.h5")
    loaded = af.AutofocusRecord.load(tmp_path / "record.h5")
    assert loaded.decisions == record.decisions and loaded.rules == record.rules
    assert loaded.replayed(small) == record.decisions


@pytest.mark.slow
def test_images_far_from_focus_are_left_out(focused, small):
    """Three images near the focus and one far from it: the decision is that of the three."""
    instrument, _ = focused
    near_A = [-np.array([*FOUND_A.values()]) + np.array([c, 0.0, 0.0]) for c in (60, -60, 120)]
    keys = jax.random.split(jax.random.key(1), 4)
    settings_A = [*near_A, np.array([2900.0, 0.0, 0.0])]
    images = [instrument.image(k, s) for k, s in zip(keys, settings_A, strict=True)]
    three, four = (
        af.decide(small, settings_A[:n], images[:n], None, 0, dataclasses.replace(RULES, images=9))
        for n in (3, 4)
    )
    np.testing.assert_allclose(four.estimate_A, three.estimate_A, atol=1.0)
    assert not four.done  # nothing before it to agree with


def test_rules():
    rules = af.Rules(C10_step_A=100.0, C10_limit_A=250.0)
    last = np.array([200.0, 0.0, 0.0])
    np.testing.assert_allclose(rules.within(np.array([-5000.0, 9.0, 0.0]), last), [100.0, 9.0, 0.0])
    np.testing.assert_allclose(rules.within(np.array([5000.0, 0.0, 0.0]), last), [250.0, 0.0, 0.0])
    assert rules.met(np.array([50.0, 18.0, 24.0])) and not rules.met(np.array([50.0, 25.0, 24.0]))
    with pytest.raises(ValueError, match="images = 0: must be positive"):
        af.Rules(images=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.ones((64, 63)), r"the image has \(64, 63\) pixels, the problem \(64, 64\)"),
        (np.full(SHAPE, np.nan), "4096 pixels of the image are not finite"),
        (np.zeros(SHAPE), "the image holds 0 counts a pixel"),
    ],
)
def test_images_that_are_none(small, image, message):
    with pytest.raises(ValueError, match=message):
        af.autofocus(lambda setting_A: image, small)


def test_no_record(tmp_path):
    with pytest.raises(FileNotFoundError, match="no record at"):
        af.AutofocusRecord.load(tmp_path / "none.h5")
