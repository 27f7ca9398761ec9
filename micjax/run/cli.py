"""The command line: `micjax demo tip`, `micjax fit tip scan.ibw`, `micjax run plan.yaml`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import micjax
from micjax.core.progress import until_interrupted
from micjax.run.logs import FAILED, INTERRUPTED, WRONG_INPUT, Asked, expected, logs, say_error
from micjax.run.registry import recognised, table_of_problems

ABOUT = {
    "demo": "solve the made-up example of a problem",
    "fit": "solve a problem for a microscope's file",
    "run": "do what a plan says: solve, explore, simulate or train",
    "explore": "measure where a learner says, by the plan of an exploration",
    "validate": "check a plan without computing",
    "init": "write a commented plan to begin with",
    "simulate": "images and patterns of a structure (micjax[structures])",
    "train": "the network of a problem, on what its physics makes up",
    "status": "how far an exploration has come, while it runs",
    "watch": "the live page of an exploration (micjax[live])",
    "consolidate": "write the records of an instrument's journal as NeXus",
    "certify": "how often the errors of a problem hold the truth, on made-up data",
    "list": "the problems there are",
    "info": "versions, devices, optional packages; or what the file of a network holds",
}
FUNCTIONS = {  # of `micjax.run.commands`, where they are called otherwise
    "status": "tell_status",
    "consolidate": "consolidate_journal",
    "certify": "certify_problem",
    "info": "tell_info",
}
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
            if arguments.command == "list":
                print(table_of_problems())
                return 0
            if hasattr(arguments, "problem"):
                recognised(arguments.problem)
            # only now: what commands import takes a second
            commands = importlib.import_module("micjax.run.commands")
            function = getattr(commands, FUNCTIONS.get(arguments.command, arguments.command))
            return function(arguments, Asked(argv, kept, **options))
        except BrokenPipeError:  # `micjax list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            status = WRONG_INPUT if expected(error) else FAILED
            return say_error(error, status, arguments.debug)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="micjax", description="Differentiable physics and machine learning for microscopy."
    )
    top.add_argument("--version", action="version", version=f"micjax {micjax.__version__}")
    of = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, *shared: argparse.ArgumentParser):
        about = ABOUT[name]
        subparser = of.add_parser(name, help=about, description=about, parents=[DEBUG, *shared])
        subparser.set_defaults(command=name)
        return subparser.add_argument

    demo = command("demo", SET, OUT, RESUME, PROCESSES, ON, SWEEP)
    demo("problem", metavar="PROBLEM", nargs="?", default="tip", help=PROBLEM)
    fit = command("fit", SET, OUT, RESUME, PROCESSES, ON, SWEEP)
    fit("problem", metavar="PROBLEM", help=PROBLEM)
    fit("file", metavar="FILE", help="any format of micjax.io")
    fit("--channel", help="channel of the file (default: the height)")
    fit("--net", metavar="FILE", help="weights of a network, of micjax train (tip: engine.net)")
    command("run", PLAN, SET, OUT, RESUME, IN_DOUBT, TRUST, PROCESSES, ON, SWEEP)
    command("explore", PLAN, SET, OUT, RESUME, IN_DOUBT, TRUST)
    command("validate", PLAN, SET, TRUST)
    init = command("init")
    init("problem", metavar="PROBLEM", help=PROBLEM)
    init("file", metavar="FILE", nargs="?", help="(default: the terminal)")
    simulate = command("simulate", SET, OUT, RESUME, PROCESSES, ON, SWEEP)
    simulate("what", choices=("stem", "cbed", "hrtem"))
    simulate("structure", metavar="STRUCTURE", help="CIF, XYZ, POSCAR, PDB, ...")
    train = command("train", SET, OUT, RESUME, PROCESSES, ON, SWEEP)
    train("problem", metavar="PROBLEM", help=PROBLEM)
    command("status", RUN)
    watch = command("watch", RUN)
    watch("--port", type=int, default=5006, help="of 127.0.0.1 (default: %(default)s)")
    watch("--no-browser", action="store_true", help="only say the address")
    consolidate = command("consolidate", RUN)
    consolidate("file", metavar="FILE", nargs="?", help="(default: RUN/records.nxs)")
    certify = command("certify", RESUME)
    certify("problem", metavar="PROBLEM", help=PROBLEM)
    certify("--draws", type=int, default=200, help="runs (default: %(default)s)")
    certify("--seconds", type=float, default=600.0, help="at most (default: %(default)s)")
    certify("--seed", type=int, default=0, help="(default: %(default)s)")
    certify("--out", metavar="FILE", help="(default: PROBLEM-certificate.json)")
    certify("--store", action="store_true", help="beside the problem, where reports quote it")
    command("list")
    tell = command("info")
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
