"""The command line: `micjax demo tip`, `micjax fit tip scan.ibw`, `micjax run plan.yaml`."""

import argparse
import logging
import os
import pathlib
import secrets
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import jax
import yaml

import micjax
from micjax.core.modules import trusted_source
from micjax.instruments import InDoubt, InstrumentError, LinkError, NotReady, consolidate
from micjax.report.text import plain_table, unknown_rows
from micjax.run.folder import RunFolder, now, open_folder
from micjax.run.info import info
from micjax.run.jobs.execute import Outcome, run
from micjax.run.jobs.explore import (
    Exploration,
    folder_of_exploration,
    make_explore_plan,
    measured_file,
    with_assignments,
)
from micjax.run.jobs.explore_report import conclude
from micjax.run.jobs.job import Job, prepare
from micjax.run.jobs.simulate.job import make_simulate_plan
from micjax.run.jobs.simulate.job import prepare as prepare_simulation
from micjax.run.jobs.simulate.run import SimulationRun
from micjax.run.logs import Logs, logs
from micjax.run.plans.plan import make_plan, read_plan, with_settings
from micjax.run.plans.template import template
from micjax.run.provenance import surroundings
from micjax.run.registry import find, listed
from micjax.run.status import status

log = logging.getLogger("micjax")

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130
BROKEN = (ConnectionError, TimeoutError, LinkError, NotReady)  # no fault of what was asked for
EXPECTED = (ValueError, OSError, ImportError, InstrumentError)  # said in one line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> its exit code: 2 for bad input, 1 for a failure later, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal without the sign for infinity
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = parser().parse_args(argv)
    here = os.getcwd()
    if here not in sys.path:  # package.module may lie in the current folder; nothing there, which
        sys.path.append(here)  # may be a folder of data, takes the place of an installed package
    with logs() as kept:
        try:
            return arguments.command(arguments, ["micjax", *argv], kept)
        except KeyboardInterrupt:
            print("micjax: interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # `micjax list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            code = WRONG_INPUT if isinstance(error, EXPECTED) else FAILED
            return _failed(error, code, arguments.debug)


def _failed(error: Exception, code: int, debug: bool, where: str = "") -> int:
    expected = isinstance(error, EXPECTED)
    text = " ".join(str(error).split()) or type(error).__name__
    message = text if expected else f"{type(error).__name__}: {text}"
    print(f"micjax: error: {message}{where}", file=sys.stderr)
    if debug:
        traceback.print_exception(error)
    elif not expected and not where:
        print("micjax: --debug shows where", file=sys.stderr)
    return code


# --- the commands ------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    arguments.trust = None  # it is the user who names the problem
    return _compute(_given(arguments, {"problem": arguments.problem}), arguments, argv, kept)


def _fit(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    options = {"channel": arguments.channel, "known_tip": arguments.known_tip}
    options = {n: v for n, v in options.items() if v is not None}
    start = {"problem": arguments.problem, "file": arguments.file, "options": options}
    arguments.trust = None
    return _compute(_given(arguments, start), arguments, argv, kept)


def _run(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    path = pathlib.Path(arguments.plan)
    given = _given(arguments, read_plan(path))
    return _compute(given, arguments, argv, kept, as_given=path.read_bytes())


def _explore(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    path = pathlib.Path(arguments.plan)
    given = with_assignments(read_plan(path), arguments.set or [])
    given = given if arguments.out is None else given | {"out": arguments.out}
    plan = make_explore_plan(given, str(path))
    folder = folder_of_exploration(plan, arguments.resume)
    facts = {"status": "running", "start": now()}
    try:
        exploration = Exploration(
            plan,
            folder.path,
            resume=arguments.resume,
            in_doubt=arguments.in_doubt,
            trusted=arguments.trust,
        )
    except InDoubt as error:
        raise ValueError(f"{error}; here: --in-doubt skip, or --in-doubt again") from error
    except Exception as error:
        if isinstance(error, EXPECTED) and not isinstance(error, BROKEN):
            raise  # bad input
        folder.path.mkdir(parents=True, exist_ok=True)
        kept.write_to(folder / "log.txt")
        facts |= surroundings(argv, plan.seed, {})
        return _record_failure(error, folder, facts, kept, arguments.debug)
    with exploration:
        kept.write_to(folder / "log.txt")
        facts |= surroundings(argv, plan.seed, measured_file(plan))
        try:
            return _explored(exploration, folder, facts, arguments, kept)
        except BrokenPipeError:  # the reader of our output has gone
            raise
        except Exception as error:  # such as a full disk; every measurement is in the journal
            return _record_failure(error, folder, facts, kept, arguments.debug)


def _explored(
    exploration: Exploration,
    folder: RunFolder,
    facts: dict[str, Any],
    arguments: argparse.Namespace,
    kept: Logs,
) -> int:
    plan = exploration.plan.model_dump(mode="json")
    folder.write_json("plan.resolved.json", plan)
    folder.write_json("provenance.json", facts)
    began, error = time.monotonic(), None
    try:
        exploration.run()
    except KeyboardInterrupt:
        pass
    except Exception as found:  # what was measured is reported all the same
        error, exploration.stop_reason = found, f"{type(found).__name__}: {found}"
    status = "failed" if error else "finished" if exploration.finished else "interrupted"
    facts |= {"status": status, "end": now(), "wall_s": round(time.monotonic() - began, 3)}
    folder.write_json("provenance.json", facts)
    try:
        if len(exploration.learner.data[1]) >= 2:
            solution = conclude(exploration, folder, facts)
            for sentence in solution.statements:
                print(sentence)
            print(f"\n{plain_table(solution.table)}\n")
            print(f"report: {folder / 'report.html'}")
    except BrokenPipeError:  # the reader of our output has gone
        raise
    except Exception as found:  # every measurement is in the journal
        error = error or found
    if status != "finished":
        log.warning("%s; to go on: %s", status, _how_to_go_on(arguments, folder.path))
    if error is not None:
        return _record_failure(error, folder, facts, kept, arguments.debug)
    return 0 if exploration.finished else INTERRUPTED


def _how_to_go_on(arguments: argparse.Namespace, path: pathlib.Path) -> str:
    """The command that goes on with an exploration: the one that began it, with its settings."""
    words = ["micjax", "explore", arguments.plan, "--out", str(path), "--resume"]
    for option, values in (("--set", arguments.set), ("--trust", arguments.trust)):
        for value in values or ():
            words += [option, value]
    return shlex.join(words)


def _record_failure(
    error: Exception, folder: RunFolder, facts: dict[str, Any], kept: Logs, debug: bool
) -> int:
    """A run that failed: its folder says why -> its exit code."""
    kept.file_only(error)
    said = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    try:
        folder.write_json("provenance.json", {"end": now()} | facts | said)
    except OSError as full:
        log.warning("provenance.json: %s", full)
    return _failed(error, FAILED, debug, f" (more in {folder / 'log.txt'})")


def _validate(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    plan = make_plan(_given(arguments, read_plan(arguments.plan)), arguments.plan)
    with jax.enable_x64(plan.precision == "float64"):
        job = prepare(plan, arguments.trust)
    unknowns = sum(v.size for v in job.problem.values().values())
    print(f"{arguments.plan} is valid: {plan.problem} on {plan.file or 'its example'}, ", end="")
    print(f"{unknowns} unknown numbers in {len(job.problem.values())} names")
    return 0


def _init(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    text = template(find(arguments.problem))
    if arguments.file is None:
        print(text, end="")
        return 0
    try:
        with open(arguments.file, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{arguments.file} is there already; give another name") from None
    print(f"plan: {arguments.file}")
    return 0


def _list(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    rows = [
        {"problem": p.name, "reads files": "load" in p.functions, "what it is": p.title}
        for p in listed()
    ]
    print(plain_table(rows))
    return 0


def _simulate(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    start = {"what": arguments.what, "structure": arguments.structure}
    given = with_assignments(start, arguments.set or [])
    plan = make_simulate_plan(given if arguments.out is None else given | {"out": arguments.out})
    setup = prepare_simulation(plan)  # what is wrong is told before there is a folder
    run = SimulationRun(plan, setup, argv, arguments.resume)
    kept.write_to(run.folder / "log.txt")
    try:
        found = run.run()
    except KeyboardInterrupt:
        log.warning("interrupted; to go on: %s", run.how_to_resume())
        return INTERRUPTED
    except Exception as error:
        kept.file_only(error)
        code = _failed(error, FAILED, arguments.debug, f" (more in {run.folder / 'log.txt'})")
        print(f"micjax: to go on: {run.how_to_resume()}", file=sys.stderr)
        return code
    for sentence in found.said:
        print(sentence)
    print(f"report: {run.folder / 'report.html'}")
    return 0


def _status(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    print("\n".join(status(arguments.folder)))
    return 0


def _watch(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    try:
        from micjax.run.watch import address_of, serve
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'micjax[live]'") from error
    if not 1 <= arguments.port <= 65535:
        raise ValueError(f"--port {arguments.port}: 1 to 65535 are allowed")
    token = secrets.token_urlsafe(32)
    server = serve(arguments.folder, arguments.port, token, not arguments.no_browser)
    address = address_of(arguments.port, token)
    # whoever knows this address can stop the instrument
    print(f"{address} shows {arguments.folder}; Ctrl-C ends the page, not the run", flush=True)
    server.run_until_shutdown()
    return 0


def _consolidate(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    path = arguments.file or f"{arguments.folder}/records.nxs"
    print(f"{consolidate(arguments.folder, path)} records: {path}")
    return 0


def _info(arguments: argparse.Namespace, argv: list[str], kept: Logs) -> int:
    print(info())
    return 0


# --- one computation ---------------------------------------------------------------------------


def _given(arguments: argparse.Namespace, start: dict[str, Any]) -> dict[str, Any]:
    """The plain data of the plan: `start`, then --set, then --out."""
    given = with_settings(start, arguments.set or [])
    out = getattr(arguments, "out", None)
    return given if out is None else given | {"out": out}


def _compute(
    given: dict[str, Any],
    arguments: argparse.Namespace,
    argv: list[str],
    kept: Logs,
    as_given: bytes | None = None,
) -> int:
    plan = make_plan(given, getattr(arguments, "plan", "command line"))
    with jax.enable_x64(plan.precision == "float64"):
        kept.watch(find(plan.problem, arguments.trust).reference.partition(".")[0])
        job = prepare(plan, arguments.trust)
        folder = open_folder(job, arguments.resume)
        kept.write_to(folder / "log.txt")
        log.info("%s on %s in %s", plan.problem, plan.file or "its example", folder.path)
        try:
            if not arguments.resume:
                (folder / "plan.yaml").write_bytes(as_given or _yaml(given))
            return _tell(job, run(job, folder, resume=arguments.resume, argv=argv))
        except BrokenPipeError:  # the reader of our output has gone; the run is complete
            raise
        except Exception as error:
            there = (folder / "provenance.json").exists()  # from before anything was computed
            facts = folder.read_json("provenance.json") if there else {}
            code = _record_failure(error, folder, facts, kept, arguments.debug)
            if folder.checkpoint.exists():
                print(f"micjax: to go on: {_how_to_resume(job, folder.path)}", file=sys.stderr)
            return code


def _yaml(given: dict[str, Any]) -> bytes:
    return yaml.safe_dump(given, sort_keys=False).encode()


def _tell(job: Job, outcome: Outcome) -> int:
    """The end of a run on the terminal -> its exit code."""
    if outcome.solution is not None:
        _show(job, outcome)
    if outcome.interrupted:
        log.warning("interrupted; to go on: %s", _how_to_resume(job, outcome.folder.path))
        return INTERRUPTED
    if outcome.report is None:
        print(f"micjax: error: no report; the result is in {outcome.folder.path}", file=sys.stderr)
        return FAILED
    return 0


def _show(job: Job, outcome: Outcome) -> None:
    solution, folder = outcome.solution, outcome.folder
    for sentence in solution.statements:
        print(sentence)
    rows = unknown_rows(solution, job.truth)
    for table in (solution.table, solution.comparison, rows if len(rows) <= 20 else ()):
        if table:
            print(f"\n{plain_table(table)}")
    print()
    print(f"result: {folder / ('result.nxs' if solution.results else 'values.h5')}")
    if outcome.report is not None:
        print(f"report: {outcome.report}")


def _how_to_resume(job: Job, path: pathlib.Path) -> str:
    """The command that goes on with a run, whatever it was begun with."""
    words = ["micjax", "run", str(path / "plan.resolved.json"), "--out", str(path), "--resume"]
    try:
        trusted_source(job.citizen.reference)
    except (ValueError, ImportError):  # there it is a file that names the module
        words += ["--trust", job.citizen.reference]
    return shlex.join(words)


# --- the arguments -----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="micjax", description="Differentiable physics and machine learning for microscopy."
    )
    top.add_argument("--version", action="version", version=f"micjax {micjax.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    problem = "tip, edge ... (see micjax list), or package.module"

    demo = _command(commands, "demo", _demo, "solve the made-up example of a problem")
    demo.add_argument("problem", metavar="PROBLEM", nargs="?", default="tip", help=problem)
    _run_arguments(demo)

    fit = _command(commands, "fit", _fit, "solve a problem for a microscope's file")
    fit.add_argument("problem", metavar="PROBLEM", help=problem)
    fit.add_argument("file", metavar="FILE", help="any format of micjax.io")
    fit.add_argument("--channel", help="channel of the file (default: the height)")
    fit.add_argument("--known-tip", metavar="FILE", help="a tip that is known already")
    _run_arguments(fit)

    run_plan = _command(commands, "run", _run, "do what a plan says")
    run_plan.add_argument("plan", metavar="plan.yaml")
    _run_arguments(run_plan)
    _trust_argument(run_plan)

    explore = _command(
        commands, "explore", _explore, "measure where a learner says, by the plan of an exploration"
    )
    explore.add_argument("plan", metavar="explore.yaml")
    explore.add_argument(
        "--in-doubt",
        choices=("skip", "again"),
        help="leave a measurement out that was broken off and cannot be repeated, or measure again",
    )
    _run_arguments(explore)
    _trust_argument(explore)

    validate = _command(commands, "validate", _validate, "check a plan without computing")
    validate.add_argument("plan", metavar="plan.yaml")
    _set_argument(validate)
    _trust_argument(validate)

    init = _command(commands, "init", _init, "write a commented plan to begin with")
    init.add_argument("problem", metavar="PROBLEM", help=problem)
    init.add_argument("file", metavar="FILE", nargs="?", help="(default: the terminal)")

    made = _command(
        commands, "simulate", _simulate, "images and patterns of a structure (micjax[structures])"
    )
    made.add_argument("what", choices=("stem", "cbed", "hrtem"))
    made.add_argument("structure", metavar="STRUCTURE", help="CIF, XYZ, POSCAR, PDB, ...")
    _set_argument(made, "energy_keV=300, tile=[3,3,10], u_A2.Sr=0.008, phonons=16, dose=1e5")
    made.add_argument("--out", metavar="DIR", help="run folder (default: a new one in runs/)")
    made.add_argument("--resume", action="store_true", help="go on with the simulation in --out")

    told = _command(commands, "status", _status, "how far an exploration has come, while it runs")
    told.add_argument("folder", metavar="RUN", help="the folder of the exploration")

    page = _command(commands, "watch", _watch, "the live page of an exploration (micjax[live])")
    page.add_argument("folder", metavar="RUN", help="the folder of the exploration")
    page.add_argument("--port", type=int, default=5006, help="of 127.0.0.1 (default: %(default)s)")
    page.add_argument("--no-browser", action="store_true", help="only say the address")

    gathered = _command(
        commands,
        "consolidate",
        _consolidate,
        "write the records of an instrument's journal as NeXus",
    )
    gathered.add_argument("folder", metavar="RUN", help="the folder of the journal")
    gathered.add_argument("file", metavar="FILE", nargs="?", help="(default: RUN/records.nxs)")

    _command(commands, "list", _list, "the problems there are")
    _command(commands, "info", _info, "versions, devices, optional packages")
    return top


def _command(commands, name: str, function, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(command=function)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _set_argument(
    command: argparse.ArgumentParser,
    text: str = "engine.steps=50, priors.noise.sigma=null, values.NAME=4, seed=3; else an option",
) -> None:
    command.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help=text,
    )


def _run_arguments(command: argparse.ArgumentParser) -> None:
    _set_argument(command)
    command.add_argument("--out", metavar="DIR", help="run folder (default: a new one in runs/)")
    command.add_argument("--resume", action="store_true", help="go on with the run in --out")


def _trust_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="run code of this package if the plan names it; micjax, entry points and what lies "
        "below the current folder need no word",
    )


if __name__ == "__main__":
    sys.exit(main())
