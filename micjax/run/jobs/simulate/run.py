"""A simulation as a run: what it reads, and how it ends."""

from micjax.core.progress import until_interrupted
from micjax.run.folder import RunFolder, fingerprints
from micjax.run.jobs.simulate.job import simulate
from micjax.run.jobs.simulate.report import conclude
from micjax.run.jobs.simulate.setup import prepare
from micjax.run.lifecycle import Facts, Outcome, Run
from micjax.run.logs import Asked
from micjax.run.plans.simulate import SimulatePlan


class SimulateRun(Run):
    """**Raises:** `ValueError`, `OSError` for a structure or a setting that makes no sense."""

    def __init__(self, plan: SimulatePlan, asked: Asked):
        self.setup = prepare(plan)
        self.inputs = fingerprints({"structure": plan.structure})
        self.plan = plan.model_copy(update={"structure": self.inputs["structure"]["path"]})
        self.name, self.title = f"simulate-{plan.what}", f"{plan.what} of {plan.structure}"

    def describe(self) -> str:
        pixels = " x ".join(map(str, self.setup.shape))
        return f"{self.title}, {len(self.setup.atoms.numbers)} atoms on {pixels} pixels"

    def compute(self, folder: RunFolder, facts: Facts, resume: bool) -> Outcome:
        with until_interrupted() as interruption:
            result = simulate(self.plan, folder.path, setup=self.setup, resume=resume)
        if interruption.happened:
            facts.ended("interrupted")
            facts.write()
            return Outcome(folder, None, True, None)
        solution, report = conclude(self.plan, result, folder, facts.ended("finished"))
        facts.write()
        (folder / "checkpoints" / "simulation.h5").unlink(missing_ok=True)
        return Outcome(folder, solution, False, report)
