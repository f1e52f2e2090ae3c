"""Tasks side by side in processes that share the cores and end with the run."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from ...errors import ResultsError


def run_tasks(task: Callable[..., Any], arguments: list[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """Results as they come: in this process with one job, else in spawned ones that share the cores."""
    if jobs <= 1 or len(arguments) <= 1:
        for item in arguments:
            yield task(*item)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker, initargs=(threads,)) as pool:
        futures = [pool.submit(task, *item) for item in arguments]
        died: BrokenProcessPool | None = None
        try:
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool as error:
                    died = error  # what others had finished by then is still theirs
        finally:
            pool.shutdown(cancel_futures=True)
        if died is not None:
            raise ResultsError(
                "a process of this run was killed, for want of memory perhaps: run again, with fewer jobs; it goes on."
            ) from died


def _start_worker(threads: int) -> None:
    """In a new process: its share of the cores, and an end when the run is killed, for the folder's lock goes with that."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
