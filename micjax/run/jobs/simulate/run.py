"""The run of a simulation: its folder, its provenance, how it ends, and how it goes on."""

import pathlib
import shlex
import time
from collections.abc import Sequence
from typing import Any

import jax

from micjax.run.folder import RunFolder, new_folder, now
from micjax.run.jobs.job import fingerprint
from micjax.run.jobs.simulate.job import Simulated, simulate
from micjax.run.jobs.simulate.plan import SimulatePlan
from micjax.run.jobs.simulate.report import conclude
from micjax.run.jobs.simulate.setup import Setup
from micjax.run.provenance import surroundings


class SimulationRun:
    """A simulation with a folder of its own."""

    def __init__(self, plan: SimulatePlan, setup: Setup, argv: Sequence[str], resume: bool):
        """**Raises:** `ValueError` for a folder that is in use, or without a broken run of the same
        plan to go on with."""
        inputs = {"structure": fingerprint(pathlib.Path(plan.structure))}
        self.facts = surroundings(list(argv), plan.seed, inputs) | {"start": now()}
        self.plan, self.setup, self.resume = plan, setup, resume
        if resume:
            self.folder = self._to_go_on()
        else:
            self.folder = new_folder(plan.out, f"simulate-{plan.what}")

    def run(self) -> Simulated:
        """Compute and report; `provenance.json` tells how it ended, also when it raises."""
        self.folder.write_json("plan.resolved.json", self.plan.model_dump(mode="json"))
        self._tell("running")
        began = time.monotonic()
        try:
            options = {"setup": self.setup, "resume": self.resume}
            found = simulate(self.plan, self.folder.path, **options)
            facts = self._facts("finished", began)
            conclude(self.plan, found, self.folder, facts)
        except KeyboardInterrupt:
            self._tell("interrupted", began)
            raise
        except Exception as error:
            self._tell("failed", began, error=f"{type(error).__name__}: {error}")
            raise
        self.folder.write_json("provenance.json", facts)
        (self.folder / "checkpoints" / "simulation.h5").unlink(missing_ok=True)
        return found

    def how_to_resume(self) -> str:
        """The command line that goes on with it."""
        words, given = [], iter(self.facts["argv"])
        for word in given:
            if word == "--out":
                next(given, None)
            elif word != "--resume" and not word.startswith("--out="):
                words.append(word)
        return shlex.join([*words, "--out", str(self.folder.path), "--resume"])

    def _facts(self, status: str, began: float | None = None, **more: Any) -> dict[str, Any]:
        facts = self.facts | {"status": status} | more
        if began is not None:
            facts |= {"end": now(), "wall_s": round(time.monotonic() - began, 3)}
        return facts

    def _tell(self, status: str, began: float | None = None, **more: Any) -> None:
        self.folder.write_json("provenance.json", self._facts(status, began, **more))

    def _to_go_on(self) -> RunFolder:
        if self.plan.out is None:
            raise ValueError("--resume needs --out DIR, the run to go on with")
        folder = RunFolder(pathlib.Path(self.plan.out).expanduser())
        try:
            plan, facts = (folder.read_json(f"{n}.json") for n in ("plan.resolved", "provenance"))
            was = {"structure": facts["inputs"]["structure"]["sha256"], "x64": facts["x64"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--resume: there is no simulation in {folder.path}") from error
        if facts.get("status") == "finished":
            raise ValueError(f"--resume: the simulation in {folder.path} is finished")
        ours = self.facts["inputs"]["structure"]["sha256"]
        is_now = {"structure": ours, "x64": bool(jax.config.jax_enable_x64)}
        asked = self.plan.model_dump(mode="json")
        others = [
            f"{n} was {old.get(n)!r}, is {new[n]!r}"
            for old, new in ((plan, asked), (was, is_now))
            for n in new
            if n != "out" and old.get(n) != new[n] and not (new is asked and n == "structure")
        ]
        if others:
            raise ValueError(f"{folder.path} holds another simulation: {'; '.join(others)}")
        return folder
