"""The command line: `micjax demo tip`, `micjax fit tip scan.ibw`, `micjax run plan.yaml`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import micjax
from micjax.core.progress import until_interrupted
from micjax.run import commands
from micjax.run.lifecycle import EXPECTED, FAILED, INTERRUPTED, WRONG_INPUT, Asked, say_error
from micjax.run.logs import logs

PROBLEM = "tip, edge ... (see micjax list), or package.module"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> its exit code: 2 for bad input, 1 for a failure later, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal without the sign for infinity
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = parser().parse_args(argv)
    folder = os.getcwd()
    if folder not in sys.path:  # package.module may lie in the current folder; nothing there, which
        sys.path.append(folder)  # may be a folder of data, takes the place of an installed package
    with until_interrupted():
        return _done(arguments, ["micjax", *argv])
    print("micjax: interrupted", file=sys.stderr)
    return INTERRUPTED


def _done(arguments: argparse.Namespace, argv: list[str]) -> int:
    with logs() as kept:
        options = {n: v for n, v in vars(arguments).items() if n in Asked._fields}
        try:
            return arguments.command(arguments, Asked(argv, kept, **options))
        except BrokenPipeError:  # `micjax list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            status = WRONG_INPUT if isinstance(error, EXPECTED) else FAILED
            return say_error(error, status, arguments.debug)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="micjax", description="Differentiable physics and machine learning for microscopy."
    )
    top.add_argument("--version", action="version", version=f"micjax {micjax.__version__}")
    of = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[..., int], *shared: argparse.ArgumentParser):
        subparser = of.add_parser(
            name, help=function.__doc__, description=function.__doc__, parents=[DEBUG, *shared]
        )
        subparser.set_defaults(command=function)
        return subparser.add_argument

    demo = command("demo", commands.demo, SET, OUT, RESUME, PROCESSES, ON, SWEEP)
    demo("problem", metavar="PROBLEM", nargs="?", default="tip", help=PROBLEM)
    fit = command("fit", commands.fit, SET, OUT, RESUME, PROCESSES, ON, SWEEP)
    fit("problem", metavar="PROBLEM", help=PROBLEM)
    fit("file", metavar="FILE", help="any format of micjax.io")
    fit("--channel", help="channel of the file (default: the height)")
    fit("--net", metavar="FILE", help="weights of a network, of micjax train (tip: engine.net)")
    command("run", commands.run, PLAN, SET, OUT, RESUME, IN_DOUBT, TRUST, PROCESSES, ON, SWEEP)
    command("explore", commands.explore, PLAN, SET, OUT, RESUME, IN_DOUBT, TRUST)
    command("validate", commands.validate, PLAN, SET, TRUST)
    init = command("init", commands.init)
    init("problem", metavar="PROBLEM", help=PROBLEM)
    init("file", metavar="FILE", nargs="?", help="(default: the terminal)")
    simulate = command("simulate", commands.simulate, SET, OUT, RESUME, PROCESSES, ON, SWEEP)
    simulate("what", choices=("stem", "cbed", "hrtem"))
    simulate("structure", metavar="STRUCTURE", help="CIF, XYZ, POSCAR, PDB, ...")
    train = command("train", commands.train, SET, OUT, RESUME, PROCESSES, ON, SWEEP)
    train("problem", metavar="PROBLEM", help=PROBLEM)
    command("status", commands.tell_status, RUN)
    watch = command("watch", commands.watch, RUN)
    watch("--port", type=int, default=5006, help="of 127.0.0.1 (default: %(default)s)")
    watch("--no-browser", action="store_true", help="only say the address")
    consolidate = command("consolidate", commands.consolidate_journal, RUN)
    consolidate("file", metavar="FILE", nargs="?", help="(default: RUN/records.nxs)")
    certify = command("certify", commands.certify_problem, RESUME)
    certify("problem", metavar="PROBLEM", help=PROBLEM)
    certify("--draws", type=int, default=200, help="runs (default: %(default)s)")
    certify("--seconds", type=float, default=600.0, help="at most (default: %(default)s)")
    certify("--seed", type=int, default=0, help="(default: %(default)s)")
    certify("--out", metavar="FILE", help="(default: PROBLEM-certificate.json)")
    certify("--store", action="store_true", help="beside the problem, where reports quote it")
    command("list", commands.list_problems)
    tell = command("info", commands.tell_info)
    tell("file", metavar="FILE", nargs="?", help="weights of a network (default: none)")
    return top


def _shared(*names: str, **options: Any) -> argparse.ArgumentParser:
    """An argument of several commands."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(*names, **options)
    return shared


DEBUG = _shared("--debug", action="store_true", help="show the traceback of an error")
PLAN = _shared("plan", metavar="plan.yaml")
RUN = _shared("folder", metavar="RUN", help="the folder of an exploration, or of another journal")
SET = _shared(
    "--set",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="seed=3, engine.steps=50, priors.noise.sigma=null, values.NAME=4, budget=70, dose=1e5; "
    "else an option of the problem",
)
OUT = _shared("--out", metavar="DIR", help="run folder (default: a new one in runs/)")
RESUME = _shared("--resume", action="store_true", help="go on with the run in --out")
PROCESSES = _shared(
    "--processes",
    type=int,
    metavar="N",
    help="so many processes of this machine fit the blocks of a map, or make the runs of a sweep",
)
ON = _shared(
    "--on",
    metavar="WHERE",
    help="the same by others: dask://HOST:PORT, dask:SCHEDULER_FILE, or package.module:function, "
    "which gives a concurrent.futures.Executor",
)
SWEEP = _shared(
    "--sweep",
    action="append",
    default=[],
    metavar="NAME=[VALUE, ...]",
    help="a run for each value, of all names together for each combination: seed=[0,1,2], "
    "engine.steps=[50,100], 'file=scans/*.h5'; one table of all in --out",
)
IN_DOUBT = _shared(
    "--in-doubt",
    choices=("skip", "again"),
    help="of an exploration: leave a measurement out that was broken off and cannot be repeated, "
    "or measure again",
)
TRUST = _shared(
    "--trust",
    action="append",
    default=[],
    metavar="PACKAGE",
    help="run code of this package if the plan names it; micjax, entry points and what lies below "
    "the current folder need no word",
)
