"""One trainer for all networks: what they are shown is drawn anew for every step.

A `Training` says what is shown and what is held against it; usually a physical model draws it, so
that no step sees an example twice, and examples that are held out are others. How a training goes
is decided by it, its `Schedule` and the key alone: broken off and taken up again it ends as if it
had never stopped.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from micjax.core.devices import available_bytes, row
from micjax.core.files import write_atomically
from micjax.core.foreign.hdf5 import opened
from micjax.core.problem import Values
from micjax.core.progress import progress, until_interrupted
from micjax.core.ranges import check_ranges
from micjax.core.tree import array_of, named_leaves, parameters_under, replace
from micjax.nets.layers import in_bfloat16

FORMAT = "micjax training 1"
Batch = PyTree  # arrays [examples, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """What a network learns.

    **Arguments:**

    - `network`: where it begins.
    - `draw`: `draw(key, data) -> batch`, a pure function, called inside `jit`.
    - `loss`: `loss(network, batch) -> ()`, smaller is better; its mean over examples that are held
        out says which network is the best.
    - `data`: arrays that `draw` needs; large ones belong here and not into a closure.
    - `held_out`: draws what is held out, if that is not the same with other keys.
    - `score`: `score(network, batch) -> ()` that says which network is the best, if not `loss`.
    - `options`: that the network was made with; `facts`: what it is for. Both stand beside its
        weights in a file.
    - `certificate`: `certificate(training, network, key) -> facts` of the trained network, measured
        on examples that were not learned from.
    """

    network: nnx.Module
    draw: Callable[[Array, PyTree], Batch]
    loss: Callable[[nnx.Module, Batch], Float[Array, ""]]
    data: PyTree = None
    held_out: Callable[[Array, PyTree], Batch] | None = None
    score: Callable[[nnx.Module, Batch], Float[Array, ""]] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    certificate: Callable[["Training", nnx.Module, Array], Mapping[str, Any]] | None = None
    compiled: dict = dataclasses.field(default_factory=dict, init=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How it learns: AdamW (Loshchilov 2019), whose steps grow over the first twentieth of them and
    shrink as a cosine down to a hundredth.

    **Arguments:**

    - `steps`: batches that are learned from. `chunk`: after how many there is a look at those that
        are held out (the first one is before any step), and a checkpoint.
    - `learning_rate`: the longest step. `weight_decay`: see AdamW.
    - `clip`: the largest norm of a gradient.
    - `average`: the network that is kept is the mean of the latest ones, of about
        1 / (1 - `average`) of them.
    - `held_out`: batches that are looked at and not learned from.
    - `patience`: stop after so many looks without a better one; None: never.
    - `bfloat16`: layers compute in 16 bits, which some GPUs do several times sooner; weights, what
        networks say at the end and losses stay 32 bits.

    **Raises:** `ValueError` for numbers that are none of these.
    """

    steps: int = 2000
    chunk: int = 50
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.99
    held_out: int = 4
    patience: int | None = None
    bfloat16: bool = False

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            check_ranges(f"training.{name}", value)

    def optimiser(self) -> optax.GradientTransformation:
        longest, warm_up = self.learning_rate, max(1, self.steps // 20)
        rate = optax.warmup_cosine_decay_schedule(
            0.0, longest, warm_up, max(self.steps, warm_up + 1), 0.01 * longest
        )
        descent = optax.adamw(rate, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(self.clip), descent)


class TrainState(NamedTuple):
    """Where an optimiser is."""

    step: Array  # () int
    weights: Values
    average: Values  # the latest weights, averaged
    optimiser: optax.OptState
    best: Values  # the average that did best on what is held out
    best_loss: Array  # ()
    waited: Array  # () int, looks since


@dataclasses.dataclass(frozen=True)
class Course:
    """How far a training has come."""

    state: TrainState
    losses: Float[np.ndarray, "steps"]
    held_out: Float[np.ndarray, "looks"]
    reason: str = ""  # why it ended: steps, patience, non-finite; empty while it goes on

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, from which `courses` goes on."""
        own = {"losses": self.losses, "held_out": self.held_out}
        state = {n: np.asarray(a) for n, a in named_leaves(self.state).items()}
        return own | {f"state.{n}": a for n, a in state.items()}


class Trained(NamedTuple):
    """A network at its best on examples that were held out, and how it came there."""

    network: nnx.Module
    course: Course
    interrupted: bool


def weights_of(network: nnx.Module) -> Values:
    """All that is learned of a network, by name."""
    leaves = named_leaves({"net": network})
    names = parameters_under({"net": network}, ["net"])["net"]
    return {n.removeprefix("net."): array_of(leaves[n]) for n in names}


def best_network(training: Training, course: Course) -> nnx.Module:
    return replace(training.network, course.state.best)


def train(
    training: Training,
    schedule: Schedule,
    key: Array,
    *,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    on_chunk: Callable[[Course], Any] | None = None,
) -> Trained:
    """The best network of a training; after Ctrl-C the best one so far.

    **Arguments:**

    - `checkpoint`: an HDF5 file, written after every chunk. With `resume` the training goes on from
        it if it is there.

    **Raises:** `ValueError` for the checkpoint of another schedule, key or network (that loss and
    data are the same is for the caller to see to); `FloatingPointError` when not even the first
    loss is finite.
    """
    begun = _read(checkpoint, schedule, key) if checkpoint and resume else None
    course = None
    with until_interrupted() as interruption, progress("train", schedule.steps) as show:
        for course in courses(training, schedule, key, begun):
            show(len(course.losses), f"held-out loss {course.held_out[-1]:.5g}")
            if checkpoint is not None:
                _write(checkpoint, course, schedule, key)
            if on_chunk is not None:
                on_chunk(course)
    if course is None:  # interrupted before the first chunk
        course = (
            _first(training.network, schedule)
            if begun is None
            else _taken_up(training.network, schedule, begun)
        )
    return Trained(best_network(training, course), course, interruption.happened)


def courses(
    training: Training,
    schedule: Schedule,
    key: Array,
    begun: Mapping[str, np.ndarray] | None = None,
    start: nnx.Module | None = None,
) -> Iterator[Course]:
    """The course of a training after each chunk; the last one has a `reason`.

    **Arguments:**

    - `start`: another network of the same kind to begin with; several of them, as for
        a deep ensemble (Lakshminarayanan 2017), are compiled once.
    - `begun`: the `arrays()` of a course that was broken off.

    **Raises:** `ValueError` for arrays of another network; `FloatingPointError`; `MemoryError`,
    which says how much of a batch fits.
    """
    if start is None:
        start = training.network
    course = _taken_up(start, schedule, begun) if begun else _first(start, schedule)
    step, look = _compiled(training, schedule)
    key_of_steps, key_of_looks = jax.random.split(key)
    if not begun:  # where it begins may be the best there is
        state, held_out = look(course.state, key_of_looks, training.data)
        if not np.isfinite(held_out):
            raise FloatingPointError(f"the first loss of the training is {held_out}")
        course = dataclasses.replace(course, state=state, held_out=np.array([float(held_out)]))
    if begun and (reason := _reason(course, schedule)):
        yield dataclasses.replace(course, reason=reason)
        return
    while not course.reason:
        state, losses = course.state, []
        with _told_how_much_fits(step, state, key_of_steps, training.data):
            for _ in range(min(schedule.chunk, schedule.steps - len(course.losses))):
                state, loss = step(state, key_of_steps, training.data)
                losses.append(loss)
            state, held_out = look(state, key_of_looks, training.data)
        course = Course(
            state,
            np.concatenate([course.losses, np.asarray(jax.device_get(losses), float)]),
            np.append(course.held_out, float(held_out)),
        )
        course = dataclasses.replace(course, reason=_reason(course, schedule))
        yield course


@contextlib.contextmanager
def _told_how_much_fits(step, *arguments):
    """**Raises:** `MemoryError` where a device has too little for a batch."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = step.lower(*arguments).compile().memory_analysis()
        needed = told.temp_size_in_bytes + told.argument_size_in_bytes + told.output_size_in_bytes
        device = jax.local_devices()[0]
        there = (device.memory_stats() or {}).get("bytes_limit", available_bytes())
        fixed = needed - told.temp_size_in_bytes  # weights and data, whatever the batch
        share = max(0.0, (there - fixed) / max(told.temp_size_in_bytes, 1))
        raise MemoryError(
            f"a step of the training takes {needed / 1e9:.3g} GB, {device} has "
            f"{there / 1e9:.3g} GB: about {min(share, 0.9):.0%} of the examples of a batch fit"
        ) from error


def _reason(course: Course, schedule: Schedule) -> str:
    if not np.isfinite(course.held_out[-1]):
        return "non-finite"
    if schedule.patience and int(course.state.waited) >= schedule.patience:
        return "patience"
    return "steps" if len(course.losses) >= schedule.steps else ""


def _first(network: nnx.Module, schedule: Schedule) -> Course:
    weights = weights_of(network)
    state = TrainState(
        jnp.zeros((), int),
        weights,
        weights,
        schedule.optimiser().init(weights),
        weights,
        # of no weak type, or the step would be compiled once more
        jnp.full((), jnp.inf, jnp.result_type(float)),
        jnp.zeros((), int),
    )
    return Course(state, np.empty(0), np.empty(0))


def _taken_up(network: nnx.Module, schedule: Schedule, begun: Mapping[str, np.ndarray]) -> Course:
    first = _first(network, schedule)
    wanted = named_leaves(first.state)
    saved = {n.removeprefix("state."): a for n, a in begun.items() if n.startswith("state.")}
    for name, leaf in wanted.items():
        if name not in saved:
            raise ValueError(f"the checkpoint is of another network: {name} is missing")
        if saved[name].shape != leaf.shape:
            raise ValueError(
                f"the checkpoint is of another network: {name} of shape {saved[name].shape}, "
                f"{leaf.shape} here"
            )
    if more := sorted(set(saved) - set(wanted)):
        raise ValueError(f"the checkpoint is of another network: {more[0]} is not in this one")
    leaves = {n: jnp.asarray(saved[n], leaf.dtype) for n, leaf in wanted.items()}
    return Course(replace(first.state, leaves), begun["losses"], begun["held_out"])


def _compiled(training: Training, schedule: Schedule):
    """A step of the optimiser, and a look at what is held out; as long as the training is there."""
    if schedule not in training.compiled:
        training.compiled[schedule] = _step_and_look(training, schedule)
    return training.compiled[schedule]


def _step_and_look(training: Training, schedule: Schedule):
    optimiser, devices = schedule.optimiser(), jax.local_device_count()
    shared = NamedSharding(row(), P("devices")) if devices > 1 else None

    def drawn(draw, key, data):
        batch = draw(key, data)
        if shared is None:
            return batch
        return jax.tree.map(
            lambda a: (
                a
                if a.ndim == 0 or len(a) % devices
                else jax.lax.with_sharding_constraint(a, shared)
            ),
            batch,
        )

    network = in_bfloat16(training.network) if schedule.bfloat16 else training.network

    def with_weights(function):
        return lambda weights, batch: function(replace(network, weights), batch)

    loss, score = with_weights(training.loss), with_weights(training.score or training.loss)

    @jax.jit
    def step(state: TrainState, key, data):
        batch = drawn(training.draw, jax.random.fold_in(key, state.step), data)
        value, slope = jax.value_and_grad(loss)(state.weights, batch)
        change, inner = optimiser.update(slope, state.optimiser, state.weights)
        weights = optax.apply_updates(state.weights, change)
        # the first averages are short, or they would remember where the network began
        keep = jnp.minimum(schedule.average, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, w: keep * a + (1 - keep) * w, state.average, weights)
        new = state._replace(step=state.step + 1, weights=weights, average=average, optimiser=inner)
        return new, value

    @jax.jit
    def look(state: TrainState, key, data):
        keys, draw = jax.random.split(key, schedule.held_out), training.held_out or training.draw
        value = jax.lax.map(lambda k: score(state.average, drawn(draw, k, data)), keys).mean()
        better = value < state.best_loss
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), state.average, state.best)
        waited = jnp.where(better, 0, state.waited + 1)
        least = jnp.where(better, value, state.best_loss)
        return state._replace(best=best, best_loss=least, waited=waited), value

    return step, look


def _header(schedule: Schedule, key: Array) -> dict[str, str]:
    told = dataclasses.asdict(schedule) | {"key": np.asarray(jax.random.key_data(key)).tolist()}
    return {"format": FORMAT, "training": json.dumps(told, sort_keys=True)}


def _write(path, course: Course, schedule: Schedule, key: Array) -> None:
    def write(file) -> None:
        file.attrs.update(_header(schedule, key))
        for i, (name, array) in enumerate(course.arrays().items()):
            file[f"arrays/{i}"] = array
            file[f"arrays/{i}"].attrs["name"] = name

    write_atomically(path, write)


def _read(path, schedule: Schedule, key: Array) -> dict[str, np.ndarray] | None:
    if not pathlib.Path(path).exists():
        return None
    header = _header(schedule, key)
    with opened(path) as file:
        if file.root.text("format") != FORMAT:
            raise ValueError(f"{path} is no checkpoint of a training")
        if file.root.text("training") != header["training"]:
            raise ValueError(
                f"{path} is the checkpoint of another training: {file.root.text('training')}; this "
                f"one is {header['training']}"
            )
        arrays = file.arrays("arrays")
        return {file.get(f"arrays/{i}").attrs["name"]: a for i, a in arrays.items()}
