"""The run folder: one place for the plan, the log, the result and the report of one run."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jax

from micjax.core.files import replaced
from micjax.core.plain import dumps
from micjax.run.plans.base import Plan

try:
    import fcntl
except ImportError:  # a system that is no Unix
    fcntl = None

RUNS = "runs"
TABLE = "table.csv"
FOLDERS = (".zarr", ".zspy")  # formats whose files are folders


class RunFolder:
    """The paths of a run, and what is written while it goes on."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._locked: int | None = None

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.path / name

    @property
    def checkpoint(self) -> pathlib.Path:
        return self / "checkpoints" / "fit.h5"

    def lock(self) -> None:
        """For this process alone; the system gives it up when the process ends, however it does.

        **Raises:** `ValueError` when another process is at work in it.
        """
        if fcntl is None or self._locked is not None:
            return
        opened = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(opened)
            raise ValueError(
                f"another run is at work in {self.path}: give another --out"
            ) from error
        except OSError:  # some network disks know no locks
            os.close(opened)
        else:
            self._locked = opened

    def unlock(self) -> None:
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """All of the file or none: a reader may look while the run goes on."""
        with replaced(self / name) as unfinished:
            unfinished.write_text(dumps(content, indent=2) + "\n", encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any]:
        return json.loads((self / name).read_text(encoding="utf-8"))

    def log(self) -> str:
        """What was said so far, such as the channel that was chosen."""
        path = self / "log.txt"
        there = path.exists()
        return path.read_text(encoding="utf-8", errors="replace")[-20_000:] if there else ""

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        with open(self / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(dumps(row) + "\n")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_path(kind: str) -> pathlib.Path:
    """A folder in `runs/` that is not there yet."""
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{kind}"
    path, count = pathlib.Path(RUNS) / stem, 1
    while path.exists():  # two runs in one second
        count += 1
        path = pathlib.Path(RUNS) / f"{stem}-{count}"
    return path


def fingerprint(path: pathlib.Path) -> dict[str, Any]:
    """What a file is, wherever it lies, or a format's folder of files."""
    if not path.is_dir():
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": str(path.absolute()), "sha256": digest, "bytes": path.stat().st_size}
    inside = {
        p.relative_to(path).as_posix(): fingerprint(p) for p in path.rglob("*") if p.is_file()
    }
    every = "\n".join(f"{name} {inside[name]['sha256']}" for name in sorted(inside))
    digest = hashlib.sha256(every.encode()).hexdigest()
    size = sum(known["bytes"] for known in inside.values())
    return {"path": str(path.absolute()), "sha256": digest, "bytes": size}


def fingerprints(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of all that is the path of a file, by name; of the files of a list by `name.number`."""
    lists = {n: v for n, v in named.items() if isinstance(v, list | tuple)}
    single = {f"{n}.{i}": v for n, of in lists.items() for i, v in enumerate(of)} | dict(named)
    paths = {name: pathlib.Path(v) for name, v in single.items() if isinstance(v, str) and v}
    return {name: fingerprint(path) for name, path in paths.items() if _is_file(path)}


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file() or path.is_dir() and path.suffix in FOLDERS
    except OSError:  # a long text is no path
        return False


def identity(plan: Plan, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: the resolved plan, and what is in its files."""
    same = _without_files(plan, plan.model_dump(exclude={"kind", "out"}))
    return json.loads(dumps({"plan": same, "inputs": _hashes(inputs)}))


def _without_files(plan: Plan, known: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a plan without the paths `plan.FILES`; * stands for every name in a table."""

    def without(value: Any, path: Sequence[str]) -> Any:
        if not isinstance(value, dict):
            return value
        first, *others = path
        if not others:
            return {n: v for n, v in value.items() if n != first}
        return {n: without(v, others) if first in (n, "*") else v for n, v in value.items()}

    for path in plan.FILES:
        known = without(known, path.split("."))
    return dict(known)


def _hashes(inputs: Mapping[str, Any]) -> dict[str, str]:
    return {name: known["sha256"] for name, known in inputs.items()}


def open_folder(plan: Plan, name: str, inputs: Mapping[str, Any], resume: bool) -> RunFolder:
    """The folder `plan.out`, or a new one in `runs/` called after `name`; nothing is written yet.

    A folder which is not empty must hold a run of the same plan on the same files: one to go on
    with by `resume`, when `plan.MAY_DIFFER` need not be the same, or one to compute anew where
    the kind of plan allows it and no checkpoint is lost.

    **Raises:** `ValueError` when the folder is something else or `resume` has nothing to go on
    from.
    """
    same = identity(plan, inputs)
    if plan.out is None:
        if resume:
            raise ValueError("--resume needs --out DIR, the run to go on with")
        digest = hashlib.sha256(dumps(same, sort_keys=True).encode()).hexdigest()[:8]
        return RunFolder(new_path(f"{name}-{digest}"))
    folder = RunFolder(pathlib.Path(plan.out))
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"--out {folder.path} is a file; a folder is wanted")
    if not folder.path.exists() or not any(folder.path.iterdir()):
        if resume:
            raise ValueError(f"--resume: there is no run in {folder.path}")
        return folder
    if not (folder / plan.MARK).exists():
        raise ValueError(f"--out {folder.path} is not empty and holds no micjax run to {plan.kind}")
    if not resume and not plan.ANEW:
        raise ValueError(
            f"--out {folder.path} is not empty; give --resume to go on with it, or another --out"
        )
    if plan.MARK == Plan.MARK:
        _check_same(folder, plan, same, resume)
    return folder


def _check_same(folder: RunFolder, plan: Plan, same: Mapping[str, Any], resume: bool) -> None:
    path = folder.path
    try:
        old, facts = folder.read_json("plan.resolved.json"), folder.read_json("provenance.json")
        earlier = {"plan": _without_files(plan, old), "inputs": _hashes(facts["inputs"])}
        status, x64 = facts.get("status"), facts["x64"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--out {path} is not empty and holds no micjax run that can be read: "
            f"{type(error).__name__}: {error}"
        ) from error
    differences = _differences(earlier, same, plan.MAY_DIFFER if resume else ())
    if x64 != bool(jax.config.jax_enable_x64):
        differences.append(f"x64 was {x64}, is {not x64}")
    if differences:
        raise ValueError(f"--out {path} holds the run of another plan: {'; '.join(differences)}")
    if resume and status == "finished" and not plan.MAY_DIFFER:
        raise ValueError(f"--resume: the run in {path} is finished")
    if not resume and folder.checkpoint.exists() and status != "finished":
        raise ValueError(
            f"{path} holds a run that was broken off: give --resume to go on with it, "
            "or another --out"
        )


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], ignore: tuple) -> list[str]:
    lines = []
    for key in now["plan"]:
        old, new = earlier.get("plan", {}).get(key), now["plan"][key]
        if key in ignore or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            # no prior (None) is another thing than that of the problem
            absent = "that of the problem" if key == "priors" else None
            pairs = {n: (old.get(n, absent), new.get(n, absent)) for n in {**old, **new}}
            lines += [f"{key}.{n} was {a!r}, is {b!r}" for n, (a, b) in pairs.items() if a != b]
        else:
            lines.append(f"{key} was {old!r}, is {new!r}")
    if earlier.get("inputs") != now["inputs"]:
        lines.append("the input files have another content")
    return lines
