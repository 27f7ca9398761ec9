"""The run folder: one place for the plan, the log, the result and the report of one run."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from micjax.core.files import replaced
from micjax.core.plain import dumps
from micjax.run.jobs.job import Job

RUNS = "runs"


class RunFolder:
    """The paths of a run, and what is written while it goes on."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.path / name

    @property
    def checkpoint(self) -> pathlib.Path:
        return self / "checkpoints" / "fit.h5"

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """All of the file or none: a reader may look while the run goes on."""
        with replaced(self / name) as unfinished:
            unfinished.write_text(dumps(content, indent=2) + "\n", encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any]:
        return json.loads((self / name).read_text(encoding="utf-8"))

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        with open(self / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(dumps(row) + "\n")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_folder(out: str | None, what: str) -> RunFolder:
    """The empty folder `out`, or a new one in `runs/`.

    **Raises:** `ValueError` where there is something already.
    """
    path = new_path(what) if out is None else pathlib.Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"--out {path} is there already, and not an empty folder")
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path)


def new_path(what: str) -> pathlib.Path:
    """A folder in `runs/` that is not there yet."""
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{what}"
    path, count = pathlib.Path(RUNS) / stem, 1
    while path.exists():  # two runs in one second
        count += 1
        path = pathlib.Path(RUNS) / f"{stem}-{count}"
    return path


def identity(job: Job) -> dict[str, Any]:
    """What makes two runs the same: the resolved plan without `out`, and what is in the inputs."""
    plan = job.plan.model_dump(exclude={"out", "file"})
    same = {"plan": plan, "inputs": _hashes(job.inputs)}
    return json.loads(dumps(same))


def _hashes(inputs: Mapping[str, Any]) -> dict[str, str]:
    return {name: known["sha256"] for name, known in inputs.items()}


def open_folder(job: Job, resume: bool) -> RunFolder:
    """The folder of `job.plan.out`, or a new one in `runs/`.

    A folder which is not empty must hold a run of the same plan. A run that was broken off is
    begun anew only where there is no checkpoint to lose; with `resume` it goes on, and its engine
    settings may differ (more steps).

    **Raises:** `ValueError` when the folder is something else or `resume` has nothing to go on
    from; `OSError` when it cannot be made.
    """
    same = identity(job)
    if job.plan.out is None:
        if resume:
            raise ValueError("--resume needs --out DIR, the run to go on with")
        digest = hashlib.sha256(dumps(same, sort_keys=True).encode()).hexdigest()[:8]
        return _made(new_path(f"{job.citizen.short}-{digest}"))
    path = pathlib.Path(job.plan.out)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {path} is a file; a folder is wanted")
    if not path.exists() or not any(path.iterdir()):
        if resume:
            raise ValueError(f"--resume: there is no run in {path}")
        return _made(path)
    _check_same(path, same, resume)
    return _made(path)


def _made(path: pathlib.Path) -> RunFolder:
    for part in ("checkpoints", "figures"):
        (path / part).mkdir(parents=True, exist_ok=True)
    return RunFolder(path)


def _check_same(path: pathlib.Path, same: Mapping[str, Any], resume: bool) -> None:
    folder = RunFolder(path)
    try:
        plan, facts = folder.read_json("plan.resolved.json"), folder.read_json("provenance.json")
        was = {"plan": plan, "inputs": _hashes(facts["inputs"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--out {path} is not empty and holds no micjax run") from error
    differences = _differences(was, same, ignore="engine" if resume else "")
    if differences:
        raise ValueError(f"--out {path} holds the run of another plan: {differences}")
    if resume or not folder.checkpoint.exists():
        return
    if facts.get("status") != "finished":
        raise ValueError(
            f"{path} holds a run that was broken off: give --resume to go on with it, "
            "or another --out"
        )


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], ignore: str) -> str:
    lines = []
    for key in now["plan"]:
        old, new = was.get("plan", {}).get(key), now["plan"][key]
        if key == ignore or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
            lines += [f"{key}.{n} was {old.get(n)!r}, is {new.get(n)!r}" for n in names]
        else:
            lines.append(f"{key} was {old!r}, is {new!r}")
    if was.get("inputs") != now["inputs"]:
        lines.append("the input files have another content")
    return "; ".join(lines)
