"""The trainer: it learns, goes on bit for bit, and refuses what is not its own."""

import dataclasses
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from micjax.nets.train import (
    Schedule,
    Training,
    _first,
    _step_and_look,
    courses,
    train,
    weights_of,
)
from micjax.nets.unet import UNet

SHORT = Schedule(steps=40, chunk=10, learning_rate=0.3, weight_decay=0.0, average=0.5)
KEY = jax.random.key(3)


def draw(key, data):
    x = jax.random.normal(key, (16, 3))
    return x, x @ data


def loss(network, batch):
    return jnp.square(network(batch[0]) - batch[1]).mean()


def regression(seed=0, width=2):
    network = nnx.Linear(3, width, rngs=nnx.Rngs(seed), param_dtype=jnp.result_type(float))
    return Training(network, draw, loss, jnp.arange(6.0).reshape(3, 2)[:, :width])


@pytest.fixture(scope="module")
def trained():
    return train(regression(), SHORT, KEY)


def test_it_learns(trained):
    course = trained.course
    assert course.reason == "steps" and not trained.interrupted
    assert len(course.losses) == 40 and len(course.held_out) == 5
    assert course.held_out[-1] < 0.1 * course.held_out[0]
    assert float(course.state.best_loss) == pytest.approx(course.held_out.min())
    best = weights_of(trained.network)
    for name, array in course.state.best.items():
        np.testing.assert_array_equal(best[name], array)


def test_the_first_averages_are_short():
    """It forgets by (1 + step) / (10 + step) until that is its own share."""
    short = dataclasses.replace(SHORT, steps=2, chunk=1)
    training = regression()
    first, second = (c.state for c in courses(training, short, KEY))
    for name, begun in weights_of(training.network).items():
        average = 0.1 * begun + 0.9 * first.weights[name]
        np.testing.assert_allclose(first.average[name], average, rtol=1e-9)
        average = 2 / 11 * average + 9 / 11 * second.weights[name]
        np.testing.assert_allclose(second.average[name], average, rtol=1e-9)


def test_it_goes_on_bit_for_bit(tmp_path, trained):
    file = tmp_path / "training.h5"

    def interrupt(course):
        if len(course.losses) == 20:
            raise KeyboardInterrupt

    broken_off = train(regression(), SHORT, KEY, checkpoint=file, on_chunk=interrupt)
    assert broken_off.interrupted and len(broken_off.course.losses) == 20
    again = train(regression(), SHORT, KEY, checkpoint=file, resume=True)
    np.testing.assert_array_equal(again.course.losses, trained.course.losses)
    np.testing.assert_array_equal(again.course.held_out, trained.course.held_out)
    for name, array in trained.course.arrays().items():
        np.testing.assert_array_equal(again.course.arrays()[name], array)
    finished = train(regression(), SHORT, KEY, checkpoint=file, resume=True)
    assert finished.course.reason == "steps" and len(finished.course.losses) == 40


@pytest.mark.parametrize(
    ("training", "schedule", "key", "message"),
    [
        (regression(), dataclasses.replace(SHORT, steps=50), KEY, "of another training"),
        (regression(), SHORT, jax.random.key(4), "of another training"),
        (regression(width=1), SHORT, KEY, "of another network: .* of shape"),
    ],
)
def test_the_checkpoint_of_another_training(tmp_path, training, schedule, key, message):
    file = tmp_path / "training.h5"
    train(regression(), SHORT, KEY, checkpoint=file)
    with pytest.raises(ValueError, match=message):
        train(training, schedule, key, checkpoint=file, resume=True)


def test_it_stops_when_nothing_gets_better():
    done = dataclasses.replace(SHORT, steps=1000, patience=3)
    course = train(regression(), done, KEY).course
    assert course.reason == "patience" and len(course.losses) < 1000
    assert int(course.state.waited) == 3
    assert np.argmin(course.held_out) == len(course.held_out) - 4


def test_nothing_is_finite():
    training = dataclasses.replace(regression(), loss=lambda n, b: loss(n, b) * jnp.nan)
    with pytest.raises(FloatingPointError, match="the first loss of the training is nan"):
        train(training, SHORT, KEY)


def test_a_single_step_is_a_schedule():
    assert len(train(regression(), dataclasses.replace(SHORT, steps=1), KEY).course.losses) == 1


def test_where_it_begins_may_be_the_best():
    """Steps that are far too long: what is kept is the network as it was given."""
    training = dataclasses.replace(regression(), loss=lambda n, b: jnp.abs(n.kernel - 0.1).max())
    begun = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=jnp.result_type(float))
    begun.kernel.set_value(jnp.full((3, 2), 0.1))
    training = dataclasses.replace(training, network=begun)
    done = train(training, dataclasses.replace(SHORT, learning_rate=10.0), KEY)
    assert done.course.held_out[0] == 0.0 < done.course.held_out[1:].min()
    np.testing.assert_array_equal(done.network.kernel.get_value(), 0.1)


def test_what_is_no_longer_finite_is_not_kept():
    def breaks(network, batch):
        kernel = network.kernel.get_value()
        return loss(network, batch) + jnp.where(kernel.max() > 4.0, jnp.inf, 0.0)

    done = train(dataclasses.replace(regression(), loss=breaks), SHORT, KEY)
    assert done.course.reason == "non-finite"
    assert all(np.isfinite(a).all() for a in weights_of(done.network).values())


def test_a_schedule_of_numbers_that_are_none():
    with pytest.raises(ValueError, match="training.learning_rate is -1"):
        Schedule(learning_rate=-1.0)
    with pytest.raises(ValueError, match="training.steps is 0"):
        Schedule(steps=0)


def test_sixteen_bits_learn_too():
    course = train(regression(), dataclasses.replace(SHORT, bfloat16=True), KEY).course
    assert course.held_out[-1] < 0.2 * course.losses[0]
    assert all(a.dtype == jnp.result_type(float) for a in course.state.weights.values())


def test_what_is_computed_in_sixteen_bits():
    """Convolutions and their gradients are, and of what is said and lost nothing is."""
    network = UNet(width=8, depth=1, condition=2, rngs=nnx.Rngs(0))
    lost = []

    def said_and_lost(network, batch):
        value = jnp.square(network(*batch) - 1.0).mean()
        lost.append(value.dtype)
        return value

    given = jnp.ones((2, 8, 8, 1)), jnp.ones((2, 2))
    training = Training(network, lambda key, data: data, said_and_lost, given)
    for sixteen in (True, False):
        schedule = Schedule(bfloat16=sixteen)
        layers = _products(training, schedule)
        kind = "bf16" if sixteen else "f64" if jax.config.jax_enable_x64 else "f32"
        assert {dtype for dtype, _ in layers} == {kind}
        assert {name for _, name in layers} == {"conv_general_dilated", "dot_general"}
    assert set(lost) == {jnp.dtype(jnp.result_type(float))}


def _products(training, schedule):
    """The kinds of numbers of all products of a step with weights."""
    step, _ = _step_and_look(training, schedule)
    state = _first(training.network, schedule).state
    text = str(jax.make_jaxpr(step)(state, KEY, training.data))
    return re.findall(r":(\w+)\[[^]]*\] = (conv_general_dilated|dot_general)", text)


DEVICES = """
import numpy as np, jax
from test_train import SHORT, KEY, regression, train
assert jax.local_device_count() == 2
np.save("losses.npy", train(regression(), SHORT, KEY).course.losses)
"""


@pytest.mark.slow
def test_two_devices_share_a_batch(tmp_path, trained):
    env = dict(os.environ, JAX_ENABLE_X64="1", NPROC="16")
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    env["PYTHONPATH"] = os.path.dirname(__file__) + os.pathsep + env.get("PYTHONPATH", "")
    subprocess.run([sys.executable, "-c", DEVICES], cwd=tmp_path, env=env, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "losses.npy"), trained.course.losses, rtol=1e-6)


def test_a_course_tells_that_it_has_ended(trained):
    assert [c.reason for c in courses(regression(), SHORT, KEY)] == ["", "", "", "steps"]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("RESOURCE_EXHAUSTED: out", MemoryError, r"takes .* GB, .* has .* GB: about 50%"),
        ("INTERNAL: no", jax.errors.JaxRuntimeError, "INTERNAL"),
    ],
)
def test_a_batch_that_does_not_fit(monkeypatch, text, kind, message):
    """It says how much would; other faults of a device stay what they are."""
    module, training = sys.modules["micjax.nets.train"], regression()
    step, look = module._compiled(training, SHORT)
    state = module._first(training.network, SHORT).state
    told = step.lower(state, KEY, training.data).compile().memory_analysis()
    half = told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes // 2

    class Full:
        lower = step.lower

        def __call__(self, *_):
            raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(module, "available_bytes", lambda: half)
    monkeypatch.setattr(module, "_compiled", lambda *_: (Full(), look))
    with pytest.raises(kind, match=message):
        list(courses(training, SHORT, KEY))
