"""What a command costs before it says a word, beside Python itself and `import jax`.

    python benchmarks/startup.py

One JSON line each: medians of CPU seconds (user and system) of nine runs in processes of their own,
after one that fills the caches of the disk, and the largest memory.
"""

import json
import os
import statistics
import sys

RUNS = 9
MICJAX = ("-m", "micjax")
WHAT = {
    "python": ("-c", "pass"),
    "import jax": ("-c", "import jax"),
    "import micjax": ("-c", "import micjax"),
    "micjax.InverseProblem": ("-c", "import micjax; micjax.InverseProblem"),
    "micjax --version": (*MICJAX, "--version"),
    "micjax --help": (*MICJAX, "--help"),
    "micjax list": (*MICJAX, "list"),
    "micjax fit nosuch file": (*MICJAX, "fit", "nosuch", "file"),
    "micjax fit --nosuch": (*MICJAX, "fit", "--nosuch"),
    "micjax validate nosuch.yaml": (*MICJAX, "validate", "nosuch.yaml"),
}


def cost(arguments) -> tuple[float, float]:
    """CPU seconds, and MB."""
    child = os.fork()
    if child == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.execv(sys.executable, [sys.executable, *arguments])
    _, _, used = os.wait4(child, 0)
    unit = 1e3 if sys.platform == "linux" else 1e6  # kB there, bytes on a Mac
    return used.ru_utime + used.ru_stime, used.ru_maxrss / unit


def main() -> None:
    for name, arguments in WHAT.items():
        cost(arguments)
        seconds, memory = zip(*(cost(arguments) for _ in range(RUNS)), strict=True)
        line = {"what": name, "cpu_seconds": round(statistics.median(seconds), 3)}
        print(json.dumps(line | {"MB": round(max(memory))}), flush=True)


if __name__ == "__main__":
    main()
