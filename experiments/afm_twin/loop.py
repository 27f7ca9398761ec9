"""The closed loop of the experiment, the same for a file, a twin and a controller over TCP."""

import os

from micjax.active.campaign import Campaign, Policy
from micjax.active.learner.learner import Learner
from micjax.active.learner.signals import reduced
from micjax.active.learner.space import SearchAxis, Space
from micjax.active.snapshot import Snapshots
from micjax.instruments import Guard, Instrument, Journal


def learner(device: Instrument, seed: int = 0) -> Learner:
    axes = [
        SearchAxis(n, device.axes[n].lo, device.axes[n].hi, device.axes[n].unit) for n in ("y", "x")
    ]
    return Learner(Space(axes), outcome="height", initial=15, seed=seed)


def search(
    device: Instrument, policy: Policy, mode: str, channel: str, points: int, folder: os.PathLike
) -> list[dict]:
    """Looks for the highest place, and leaves a journal that can be watched and taken up."""
    guard = Guard(device, seconds=3600.0)
    learnt = Snapshots(folder, policy) if isinstance(policy, Learner) else lambda: None
    with Journal(folder, {"mode": mode}, resume=os.path.exists(folder)) as journal:
        reduce = reduced("mean", channel)
        loop = Campaign(guard, policy, mode, reduce, journal, outcome="height", learnt=learnt)
        loop.run(points)
    return loop.points
