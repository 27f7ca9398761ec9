"""The plan of a training: of which problem, on what, and how."""

from typing import Any, Literal

from micjax.run.plans.base import Plan


class TrainPlan(Plan):
    """The network of a problem, and how it learns: see `micjax.nets.train.Schedule`."""

    # by the signatures of the problem's `training` and of the schedule
    CHECKED_LATER = dict.fromkeys(("options", "schedule"), True)
    OTHERS = "options"

    kind: Literal["train"] = "train"
    problem: str
    options: dict[str, Any] = {}
    schedule: dict[str, Any] = {}
    tensorboard: bool = False  # the losses also as the event files of TensorBoard
