"""One plan with many settings: `--sweep seed=[0,1,2] --sweep 'file=scans/*.h5'`."""

import contextlib
import csv
import functools
import glob
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import h5py
import yaml

from micjax.core.files import replaced
from micjax.core.progress import progress, until_interrupted
from micjax.inference.maps.blocks.dealt import Workers, dealt
from micjax.run.folder import fingerprint, new_path
from micjax.run.jobs.dealt.elsewhere import processes
from micjax.run.plans.base import Plan
from micjax.run.plans.plan import make_plan, with_settings
from micjax.run.plans.yamls import parse

log = logging.getLogger("micjax")

MOST = 10_000  # runs
TABLE = "sweep.csv"
BROKEN = 1


def settings_of(texts: Sequence[str]) -> list[dict[str, str]]:
    """Every combination, each as `{name: value as --set has it}`.

    **Raises:** `ValueError` for what is no `NAME=[VALUE, ...]`, files that no pattern matches, a
    name that comes twice, and too many runs.
    """
    lists: dict[str, list[str]] = {}
    for text in texts:
        name, equals, given = text.partition("=")
        if not equals or not name or name in lists:
            raise ValueError(f"--sweep {text}: write NAME=[VALUE, ...], each name once")
        lists[name] = _values(name, given)
        if not lists[name]:
            raise ValueError(f"--sweep {text}: there are no such values")
    combinations = [
        dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())
    ]
    if len(combinations) > MOST:
        raise ValueError(f"--sweep: {len(combinations)} runs; at most {MOST} are allowed")
    return combinations


def _values(name: str, given: str) -> list[str]:
    if name == "file" and glob.has_magic(given) and not given.startswith("["):
        return [os.path.abspath(path) for path in sorted(glob.glob(given))]
    values = parse(given, f"--sweep {name}")
    values = values if isinstance(values, list) else [values]
    return [json.dumps(v) for v in values]


def sweep(
    plan: Mapping[str, Any],
    settings: Sequence[Mapping[str, str]],
    out: str | None,
    workers: Workers | None,
    resume: bool,
    trust: Sequence[str] | None,
    check: Callable[[Plan], Any],
) -> int:
    """Every run in a folder of its own, and one table of all -> exit status.

    **Arguments:**

    - `plan`: what all runs have; `settings`: what each of them has besides.
    - `check`: raises for what is wrong with a plan and its data.

    **Raises:** `ValueError` for a plan that is wrong with any of the settings, before the first of
    them runs, and a folder that holds another sweep.
    """
    plans, known_kinds = [], set()
    with progress("checking", len(settings)) as show:
        for some in settings:
            # what differs in a seed only is right if the other one is
            kind = tuple((n, v) for n, v in some.items() if n != "seed")
            plans.append(_checked(plan, some, None if kind in known_kinds else check))
            known_kinds.add(kind)
            show(len(plans))
    folder = new_path(f"sweep-{plan.get('problem', plan.get('kind', ''))}")
    folder = folder if out is None else pathlib.Path(out)
    _open(folder, plans, resume)
    log.info("sweep of %d runs in %s", len(plans), folder)
    ended = {i: known for i in range(len(plans)) if (known := _known(folder / f"{i:04d}"))}
    hashed = functools.cache(lambda file: fingerprint(pathlib.Path(file))["sha256"])
    for i, known in ended.items():
        _check_file(folder / f"{i:04d}", plans[i].get("file"), known, hashed)
    todo = [i for i in range(len(plans)) if ended.get(i, {}).get("status") != "finished"]

    def arguments(i: int) -> tuple:
        return str(folder / f"{i:04d}"), list(trust) if trust is not None else None

    with until_interrupted() as interruption, progress("sweep", len(plans)) as show:
        show(len(plans) - len(todo))
        by = workers or Workers(lambda: processes(1), 1)
        for i, known in dealt(carried_out, todo, arguments, by):
            ended[i] = known
            _write_table(folder, settings, ended)
            show(sum(e.get("status") == "finished" for e in ended.values()), known["status"])
    _write_table(folder, settings, ended)
    failed = [i for i in range(len(plans)) if ended.get(i, {}).get("status") != "finished"]
    print(f"{len(plans) - len(failed)} of {len(plans)} runs finished\ntable: {folder / TABLE}")
    for i in failed[:10]:
        print(f"not finished: {folder / f'{i:04d}'} {ended.get(i, {}).get('error', '')}".rstrip())
    if interruption.happened:
        log.warning("interrupted; to go on: the same command with --out %s --resume", folder)
        return 130
    return BROKEN if failed else 0


def _checked(
    plan: Mapping[str, Any], some: Mapping[str, str], check: Callable[[Plan], Any] | None
) -> dict[str, Any]:
    """The plan with some settings."""
    if "out" in some:
        raise ValueError("--sweep out: each run has a folder of its own in --out")
    given = with_settings(plan, [f"{n}={v}" for n, v in some.items()])
    made = make_plan(given, f"--sweep {some}")
    if made.kind == "explore":
        raise ValueError("--sweep: an exploration has an instrument, which is there once")
    try:
        if check is not None:
            check(made)
    except (ValueError, OSError) as error:
        raise ValueError(f"--sweep {dict(some)}: {error}") from error
    if isinstance(given.get("file"), str):  # a worker may be in another folder
        given["file"] = os.path.abspath(given["file"])
    return given


def _check_file(
    path: pathlib.Path, file: str | None, known: Mapping[str, Any], hashed: Callable[[str], str]
) -> None:
    """**Raises:** `ValueError` for a run that has ended, of a file that is another one now."""
    before = known.get("inputs", {}).get("file", {}).get("sha256")
    if file and before and hashed(file) != before:
        raise ValueError(f"{file} has changed since the run in {path}: give another --out")


def _open(folder: pathlib.Path, plans: Sequence[Mapping[str, Any]], resume: bool) -> None:
    """With the plan of each run in its folder.

    **Raises:** `ValueError` for a folder that holds something else.
    """
    names = [f"{i:04d}" for i in range(len(plans))]
    texts = [yaml.safe_dump(dict(p), sort_keys=False) for p in plans]
    there = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if there and not resume:
        raise ValueError(f"--out {folder} is not empty; give --resume to go on with its sweep")
    if resume and there:
        same = [
            p
            for n, t in zip(names, texts, strict=True)
            if (p := folder / f"{n}.yaml").exists() and p.read_text() == t
        ]
        if len(same) != len(plans):
            raise ValueError(f"--out {folder} holds another sweep")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, texts, strict=True):
        (folder / f"{name}.yaml").write_text(text)


def carried_out(folder: str, trust: Sequence[str] | None) -> dict[str, Any]:
    """The run of the plan beside this folder, begun or gone on with -> how it ended."""
    from micjax.run.cli import main

    path = pathlib.Path(folder)
    begun = (path / "checkpoints").exists() and any((path / "checkpoints").iterdir())
    command = ["run", f"{folder}.yaml", "--out", folder, *(["--resume"] if begun else [])]
    command += [word for package in trust or () for word in ("--trust", package)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.txt", "a") as told, contextlib.redirect_stdout(told):
        with contextlib.redirect_stderr(told):
            status = main(command)
    known = _known(path)
    if status and known.get("status") == "finished":
        known["status"] = "no report"
    if not known:
        known = {"status": "failed", "error": pathlib.Path(f"{folder}.txt").read_text()[-300:]}
    return known


def _known(path: pathlib.Path) -> dict[str, Any]:
    """How a run ended, and its metrics."""
    try:
        facts = json.loads((path / "provenance.json").read_text())
    except (OSError, ValueError):
        return {}
    known = {n: facts[n] for n in ("status", "wall_s", "error", "inputs") if n in facts}
    with contextlib.suppress(OSError, KeyError, ValueError):
        with h5py.File(path / "result.nxs") as file:
            known |= json.loads(file["entry/process/configuration/metrics"][()])
    return known


def _plain(text: str) -> str:
    """Text without the quotes that --set may need."""
    return json.loads(text) if text.startswith('"') else text


def _write_table(
    folder: pathlib.Path, settings: Sequence[Mapping[str, str]], ended: Mapping[int, Mapping]
) -> None:
    rows = [
        {"run": f"{i:04d}"}
        | {n: _plain(v) for n, v in some.items()}
        | {n: v for n, v in ended.get(i, {"status": "not begun"}).items() if n != "inputs"}
        for i, some in enumerate(settings)
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replaced(folder / TABLE) as unfinished, open(unfinished, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
