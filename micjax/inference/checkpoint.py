"""The state of a fit in a file, from which it goes on bit for bit."""

import dataclasses
import enum
import hashlib
import logging
import pathlib
from typing import Any

import equinox as eqx
import h5py
import jax
import numpy as np
from jaxtyping import Float, PyTree
from numpyro.distributions import Distribution

from micjax.core.files import write_atomically
from micjax.core.foreign.hdf5 import File, opened
from micjax.core.problem import Values
from micjax.inference.result import Path
from micjax.inference.solvers.driver import Carry
from micjax.inference.stage import Arrays, Search, Stage

log = logging.getLogger("micjax")
FORMAT = "micjax checkpoint 3"


class StopReason(enum.StrEnum):
    """Why a fit stopped."""

    STEPS = "steps"  # all of them were made
    TOLERANCE = "tolerance"  # the last steps lowered the loss by less
    CONVERGED = "converged"  # the solver says so
    STALLED = "stalled"  # no step lowers the loss any more, or none ever did
    NON_FINITE = "non-finite"
    INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Where one start has led to."""

    values: Values  # of all unknowns of the problem
    loss: float = np.inf  # nats, -log p(y, values)
    reason: StopReason = StopReason.STEPS
    losses: Float[np.ndarray, "steps"] = dataclasses.field(default_factory=lambda: np.empty(0))
    fault: str = ""  # what was not finite


@dataclasses.dataclass
class Snapshot:
    """How far the stages of a fit have come."""

    candidates: list[Candidate]  # of the stage before
    stage: int = 0
    rounds: int = 0  # that have ended in this stage: starts, or one of all starts together
    ended: list[Candidate] = dataclasses.field(default_factory=list)  # of those rounds
    underway: list[Candidate] = dataclasses.field(default_factory=list)  # of the present round
    carry: Carry | dict[str, np.ndarray] | None = None  # of it; arrays by name: as read
    solver: str = ""  # of it, as read
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)  # of it, chunk by chunk
    steps: int = 0  # of all rounds and stages
    arrays: Arrays = dataclasses.field(default_factory=dict)  # of the searches
    broken_off: bool = False  # whether some are of a search that has not ended
    begun: list[Values] = dataclasses.field(default_factory=list)  # where the fits of it began

    @property
    def many(self) -> bool:
        """Whether the present round is of several starts together."""
        return bool(self.losses) and self.losses[0].ndim == 2

    def advance(self, carry: Carry, losses: np.ndarray) -> None:
        # in one go: Ctrl-C comes between lines
        self.carry, self.losses, self.steps = (
            carry,
            [*self.losses, losses],
            self.steps + len(losses),
        )

    def searched(self, values: Values, arrays: Arrays) -> None:
        self.arrays, self.candidates, self.stage = arrays, [Candidate(values)], self.stage + 1

    def next_round(self) -> None:
        ended = self.ended + self.underway
        self.ended, self.underway, self.rounds, self.carry, self.losses = (
            ended,
            [],
            self.rounds + 1,
            None,
            [],
        )

    def next_stage(self) -> None:
        self.next_round()
        self.candidates, self.ended, self.rounds = self.ended, [], 0
        self.stage += 1


def solver_name(stage: Stage | Search) -> str:
    # an optax transformation has no name of its own; its state in the carry tells it apart
    return type(getattr(stage, "solver", stage)).__name__


def save_snapshot(path: Path, state: Snapshot, stage: Stage | Search, data: str) -> None:
    """Write `state`. A failure is a warning: the fit is worth more than the file."""

    def write(file: h5py.File) -> None:
        file.attrs.update(
            format=FORMAT,
            solver=solver_name(stage),
            data=data,
            stage=state.stage,
            rounds=state.rounds,
            steps=state.steps,
        )
        for group in ("candidates", "ended"):
            for i, candidate in enumerate(getattr(state, group)):
                _write_candidate(file.create_group(f"{group}/{i}"), candidate)
        file["losses"] = np.concatenate(state.losses or [np.empty(0)])
        searched = file.create_group("arrays")
        for name, array in state.arrays.items():
            searched[name] = array
        file.create_group("carry")
        for i, (name, leaf) in enumerate(_arrays(state.carry).items()):
            file[f"carry/{i}"] = np.asarray(_raw(leaf))
            file[f"carry/{i}"].attrs["name"] = name

    try:
        write_atomically(path, write)
    except OSError as error:
        log.warning("checkpoint %s was not written: %s", path, error)


def _write_candidate(group: h5py.Group, candidate: Candidate) -> None:
    group.attrs.update(loss=candidate.loss, reason=candidate.reason.value, fault=candidate.fault)
    group["losses"] = candidate.losses
    for name, value in candidate.values.items():
        group[f"values/{name}"] = np.asarray(value)


def _read_candidate(file: File, path: str) -> Candidate:
    node = file.get(path)
    return Candidate(
        {name: jax.numpy.asarray(v) for name, v in file.arrays(f"{path}/values").items()},
        float(node.attrs["loss"]),
        StopReason(node.attrs["reason"]),
        file.array("losses", node),
        str(node.attrs["fault"]),
    )


def _read_candidates(file: File, path: str) -> list[Candidate]:
    group = file.get(path)
    return [_read_candidate(file, f"{path}/{i}") for i in range(len(group.links) if group else 0)]


def load_snapshot(path: Path, state: Snapshot, data: str) -> Snapshot:
    """The state as it was saved; `state` if there is no file yet.

    **Raises:** `ValueError` when the file is no checkpoint, or that of a fit to other data.
    """
    if not pathlib.Path(path).exists():
        return state
    try:
        with opened(path) as file:
            attributes = file.root.attrs
            counts = {n: int(attributes[n]) for n in ("stage", "rounds", "steps")}
            solver, of = str(attributes["solver"]), attributes["data"]
            if file.root.text("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            groups = {g: _read_candidates(file, g) for g in ("candidates", "ended")}
            losses, numbered = file.array("losses"), file.arrays("carry")
            arrays = file.arrays("arrays")
            saved = set(groups["candidates"][0].values)
            carry = {file.get(f"carry/{i}").attrs["name"]: a for i, a in numbered.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a micjax checkpoint: {error}") from error
    wanted = set(state.candidates[0].values)
    if wanted != saved:
        lines = [f"{n} is missing" for n in sorted(wanted - saved)]
        lines += [f"{n} is not in this fit" for n in sorted(saved - wanted)]
        raise ValueError(f"{path} is the checkpoint of another fit: {'; '.join(lines)}")
    if of != data:
        raise ValueError(
            f"{path} is the checkpoint of another fit: its data, known values, priors or key are "
            "not these"
        )
    return Snapshot(
        groups["candidates"],
        ended=groups["ended"],
        carry=carry or None,
        solver=solver,
        losses=[losses] if carry else [],
        arrays=arrays,
        **counts,
    )


def restored(state: Snapshot, carry: Carry, stage: Stage) -> Carry:
    """`carry` with the arrays of `state`, if it has any that were read; `state` has it then too.

    **Raises:** `ValueError` when they are of another problem, solver or number of starts.
    """
    if not isinstance(state.carry, dict):
        state.carry = carry
        return carry
    wanted, saved = _arrays(carry), state.carry
    if wrong := _differences(saved, state.solver, stage, wanted):
        raise ValueError(f"the file is the checkpoint of another fit: {wrong}")
    arrays = [_like(saved[name], leaf) for name, leaf in wanted.items()]
    dynamic, static = eqx.partition(carry, eqx.is_array)
    dynamic = jax.tree.unflatten(jax.tree.structure(dynamic), arrays)
    state.carry = eqx.combine(dynamic, static)
    return state.carry


def _differences(saved: dict[str, np.ndarray], name: str, stage: Stage, wanted) -> str:
    lines = []
    if name != solver_name(stage):
        lines.append(f"solver {name!r} instead of {solver_name(stage)!r}")
    lines += [f"{n} is missing" for n in wanted if n not in saved]
    lines += [f"{n} is not in this fit" for n in saved if n not in wanted]
    for n in wanted.keys() & saved.keys():
        new, old = _raw(wanted[n]), saved[n]
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            lines.append(f"{n} is {old.dtype}{old.shape} instead of {new.dtype}{new.shape}")
    return "; ".join(lines)


def digest(tree: PyTree, text: str = "") -> str:
    """Of the numbers in a tree, so that a fit does not go on with other data."""
    sha256 = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(_by_name(tree)):
        if eqx.is_array_like(leaf):
            array = np.ascontiguousarray(_raw(leaf) if eqx.is_array(leaf) else leaf)
            sha256.update(f"{array.dtype}{array.shape}".encode())
            sha256.update(array.tobytes())
    return sha256.hexdigest()


def _by_name(tree: PyTree) -> PyTree:
    """Distributions as mappings: NumPyro has their fields in a set, of any order."""

    def mapping(node):
        if not isinstance(node, Distribution):
            return node
        fields = type(node).gather_pytree_data_fields()
        return {name: _by_name(getattr(node, name, None)) for name in sorted(fields)}

    return jax.tree.map(mapping, tree, is_leaf=lambda node: isinstance(node, Distribution))


def _arrays(carry: Any) -> dict[str, jax.Array]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(carry, eqx.is_array))
    return {jax.tree_util.keystr(path): leaf for path, leaf in pairs}


def _raw(leaf):
    keys = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if keys else leaf


def _like(saved: np.ndarray, leaf: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(saved, impl=jax.random.key_impl(leaf))
    return jax.numpy.asarray(saved)
