"""Speed of training: steps of a U-Net, beside the same network in PyTorch.

    python benchmarks/training.py [--quick] [--peers PYTHON] [--threads 1]

One JSON object a line: name, value, unit, peer, peer_value, ratio = value / peer_value, note. Times
are CPU times of one step (loss, gradient, clipping, AdamW, averaging) on one batch, warmed up,
the median of five times ten steps. What is learned from is the same batch each time; ours draws a
new one in `denoise` besides, which is the second line. PyTorch runs under its own interpreter
(`--peers`); without one it is skipped.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PEER = Path(__file__).parent / "training_peers" / "unet.py"
SIZES = {"width": 16, "depth": 3, "fold": 2}
MEMBERS = 3  # of a deep ensemble
BATCHES = {"16 x 64^2": (16, 64), "4 x 128^2": (4, 128)}


def on_cores(threads: int) -> None:
    """Before JAX counts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-threads:]))


def seconds_a_step(training, steps: int, calls: int) -> tuple[float, list[float], float]:
    """The median CPU time of a step, all of them, and that of compiling."""
    import jax

    from micjax.nets.train import Schedule, _compiled, _first

    schedule = Schedule(steps=1000, learning_rate=1e-3)
    step, _ = _compiled(training, schedule)
    state, key = _first(training.network, schedule).state, jax.random.key(0)
    return timed(step, state, key, training, steps, calls)


def timed(step, state, key, training, steps: int, calls: int) -> tuple[float, list[float], float]:
    begun = time.process_time()
    state, loss = step(state, key, training.data)
    loss.block_until_ready()
    compiling, taken = time.process_time() - begun, []
    for _ in range(calls):
        begun = time.process_time()
        for _ in range(steps):
            state, loss = step(state, key, training.data)
        loss.block_until_ready()
        taken.append((time.process_time() - begun) / steps)
    return statistics.median(taken), taken, compiling


def side_by_side(
    training, members: int, steps: int, calls: int
) -> tuple[float, list[float], float]:
    """The same of a deep ensemble, all of whose members take a step at once (`jax.vmap`)."""
    import jax
    import jax.numpy as jnp

    from micjax.nets.train import Schedule, _compiled, _first

    schedule = Schedule(steps=1000, learning_rate=1e-3)
    single, _ = _compiled(training, schedule)
    step = jax.jit(jax.vmap(single, in_axes=(0, 0, None)))
    begins = [_first(training.network, schedule).state] * members
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begins)
    return timed(step, state, jax.random.split(jax.random.key(0), members), training, steps, calls)


def fixed(examples: int, edge_px: int):
    """Always the same batch, which no time is spent on."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from micjax.nets.train import Training
    from micjax.nets.unet import UNet

    pair = jax.random.normal(jax.random.key(1), (2, examples, edge_px, edge_px, 1))
    return Training(
        UNet(**SIZES, rngs=nnx.Rngs(0)),
        lambda key, data: data,
        lambda network, batch: jnp.mean((network(batch[0]) - batch[1]) ** 2),
        pair,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", help="an interpreter with torch")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    on_cores(asked.threads)
    import jax

    from micjax.nets.train import weights_of
    from micjax.problems import denoise

    steps, calls = (2, 2) if asked.quick else (10, 5)
    where = f"float32, {asked.threads} threads, {platform.machine()}, jax {jax.__version__}"
    alone = {}
    for name, (examples, edge) in list(BATCHES.items())[: 1 if asked.quick else None]:
        training = fixed(examples, edge)
        own, taken, compiling = seconds_a_step(training, steps, calls)
        alone[name] = own
        number = sum(a.size for a in weights_of(training.network).values())
        note = f"{where}; {number} weights; {min(taken):.3g} to {max(taken):.3g} s; "
        note += f"compiled in {compiling:.3g} s"
        row = {"name": f"a step of a U-Net, {name}", "value": own, "unit": "CPU s"}
        row |= {"peer": "", "peer_value": None, "ratio": None}
        if asked.peers:
            given = SIZES | {"examples": examples, "edge_px": edge, "steps": steps, "calls": calls}
            of_peer = subprocess.run(
                [asked.peers, str(PEER), json.dumps(given | {"threads": asked.threads})],
                check=True,
                capture_output=True,
                text=True,
            )
            told = json.loads(of_peer.stdout)
            row |= {"peer": f"torch {told['torch']}", "peer_value": told["seconds"]}
            row["ratio"] = own / told["seconds"]
            note += f"; peer: {told['weights']} weights, {min(told['all']):.3g} to "
            note += f"{max(told['all']):.3g} s"
        else:
            note += "; torch skipped, no --peers"
        print(json.dumps(row | {"note": note}), flush=True)
    name, (examples, edge) = next(iter(BATCHES.items()))
    own, taken, compiling = side_by_side(fixed(examples, edge), MEMBERS, steps, calls)
    row = {"name": f"a step of {MEMBERS} U-Nets at once, {name}", "value": own, "unit": "CPU s"}
    row |= {"peer": "one after another", "peer_value": MEMBERS * alone[name]}
    row["ratio"] = own / row["peer_value"]
    row["note"] = f"{where}; {min(taken):.3g} to {max(taken):.3g} s; compiled in {compiling:.3g} s"
    print(json.dumps(row), flush=True)
    own, taken, compiling = seconds_a_step(denoise.training(), steps, calls)
    row = {"name": "a step of denoise, 16 x 64^2 made up anew", "value": own, "unit": "CPU s"}
    row |= {"peer": "", "peer_value": None, "ratio": None}
    row["note"] = f"{where}; {min(taken):.3g} to {max(taken):.3g} s; compiled in {compiling:.3g} s"
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
