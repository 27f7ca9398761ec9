"""Memory is asked about before it is asked for: an operating system that has promised too much ends
the process, and with it what was computed."""

import os


def available_bytes() -> float:
    """Of the main memory; infinite where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")


def check_memory(what: str, needed_bytes: int | float) -> None:
    """**Raises:** `MemoryError` when `what` needs more than there is."""
    available = available_bytes()
    if needed_bytes > available:
        raise MemoryError(
            f"{what} would take {needed_bytes / 1e9:.3g} GB; {available / 1e9:.3g} GB are free"
        )
