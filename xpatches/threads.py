"""How many threads and cores there are to use."""

import os


def available_threads() -> int:
    """Threads that extract in memory; more than four would wait for the memory."""
    return min(4, available_cores())


def available_cores() -> int:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1
