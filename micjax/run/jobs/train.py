"""A training as a run: the network of a problem, its weights as a file, how it learned."""

import pathlib
from typing import Any

import jax
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.nets.train import Course, Schedule, Trained, Training, train, weights_of
from micjax.nets.weights import check_architecture, save_network
from micjax.physics.noise import Gaussian
from micjax.report.figures import captioned, learning_curve
from micjax.run.folder import RunFolder, fingerprints
from micjax.run.jobs.page import write_report
from micjax.run.lifecycle import Facts, Outcome, Run
from micjax.run.logs import Asked
from micjax.run.plans.settings import checked, settings_of
from micjax.run.plans.train import TrainPlan
from micjax.run.registry import find

WEIGHTS = "network.h5"
ENDS = {
    "steps": "All {steps} steps were made.",
    "patience": "It stopped after {steps} steps, as nothing got better.",
    "non-finite": "IT BROKE after {steps} steps: the loss was not finite any more.",
    "": "Interrupted after {steps} steps.",
}


def events(folder: pathlib.Path | None):
    """What writes event files into a folder; None: only whether there is such a thing."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'micjax[tensorboard]'") from error
    return None if folder is None else SummaryWriter(str(folder))


class TrainRun(Run):
    """**Raises:** `ValueError` for a problem without a network, or settings that it has not;
    `ImportError` for event files without what writes them."""

    def __init__(self, plan: TrainPlan, asked: Asked):
        entry = find(plan.problem, asked.trust)
        training_of, self.figures_of = map(entry.function, ("training", "training_figures"))
        if training_of is None:
            raise ValueError(
                f"{plan.problem} has no network to train: {entry.reference} has no "
                "training(**options)"
            )
        allowed, of_schedule = settings_of(training_of), settings_of(Schedule)
        options = checked(f"option of {plan.problem}", plan.options, allowed, entry.ours)
        self.training: Training = training_of(**options)
        self.schedule = Schedule(**checked("setting of a schedule", plan.schedule, of_schedule))
        if plan.tensorboard:
            events(None)  # told here if it is missing
        check_architecture(self.training.network)  # told before anything is learned
        self.plan, self.inputs, self.name = plan, fingerprints(options), f"train-{entry.short}"
        self.title = f"the network of {plan.problem}"

    def describe(self) -> str:
        return f"{self.title}, {self.schedule.steps} steps"

    def compute(self, folder: RunFolder, facts: Facts, resume: bool) -> Outcome:
        training = self.training
        board = events(folder / "tensorboard") if self.plan.tensorboard else None

        def tell(course: Course) -> None:
            losses = {"loss": float(course.losses[-1]), "held_out_loss": float(course.held_out[-1])}
            folder.add_metrics({"step": len(course.losses)} | losses)
            if board is not None:
                for name, value in losses.items():
                    board.add_scalar(name, value, len(course.losses))
                board.flush()

        trained = train(
            training,
            self.schedule,
            jax.random.key(self.plan.seed),
            checkpoint=folder.path / "checkpoints" / "training.h5",
            resume=resume,
            on_chunk=tell,
        )
        if not len(trained.course.held_out):  # interrupted before the first look
            facts.ended("interrupted")
            facts.write()
            return Outcome(folder, None, True, None)
        told = {"problem": self.plan.problem, "steps": len(trained.course.losses)}
        told |= {"held_out_loss": float(trained.course.state.best_loss)}
        if training.certificate is not None:
            key = jax.random.fold_in(jax.random.key(self.plan.seed), 2)
            told |= training.certificate(training, trained.network, key)
        save_network(
            folder / WEIGHTS, trained.network, training.options, dict(training.facts) | told
        )
        known = facts.ended("interrupted" if trained.interrupted else "finished")
        facts.write()
        solution = self._concluded(trained)
        report = write_report(
            folder,
            self._figures(trained),
            title=self.title,
            problem=f"train {self.plan.problem}",
            data="drawn anew for every step",
            solution=solution,
            provenance=known,
            plan=self.plan.resolved(),
        )
        return Outcome(folder, solution, trained.interrupted, report)

    def can_go_on(self, folder: RunFolder) -> bool:
        return (folder / "checkpoints" / "training.h5").exists()

    def _concluded(self, trained: Trained) -> Solution:
        course, network = trained.course, trained.network
        size = sum(a.size for a in weights_of(network).values())
        row: dict[str, Any] = {"network": type(network).__name__} | dict(self.training.options)
        row |= {"weights": size, "reach (px)": getattr(network, "reach", None)}
        statements = [
            ENDS[course.reason].format(steps=len(course.losses)),
            f"Held-out loss: {course.held_out[0]:.6g} before, {np.nanmin(course.held_out):.6g} at "
            "its best, which is kept.",
        ]
        if len(course.held_out) > 1 and np.nanargmin(course.held_out) == 0:
            statements.append("Nothing was learned: the network is the one that it began with.")
        nothing_unknown = InverseProblem(lambda x: x, Gaussian(1.0), {})
        return Solution(nothing_unknown, statements=statements, table=[row])

    def _figures(self, trained: Trained) -> dict[str, Any]:
        course = trained.course
        drawn: dict[str, Any] = {
            "Learning": lambda: captioned(
                learning_curve(course.losses, course.held_out),
                "The network at the lowest loss on what is held out is kept.",
            )
        }
        if self.figures_of is not None:
            key = jax.random.fold_in(jax.random.key(self.plan.seed), 1)
            drawn |= self.figures_of(trained.network, self.training, key)
        return drawn
