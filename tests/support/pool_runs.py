"""Processes with pools of workers, to be ended in every way: ``python -m tests.support.pool_runs WHAT …``."""

import ctypes
import multiprocessing
import os
import random
import signal
import sys
import time

from ctseg.errors import TrainingError
from ctseg.train.stopping import StopRequest, TrainingStopped
from ctseg.train.worker_pools import pools_that_end
from ctseg.train.worker_processes import end_workers_with_this_process, no_workers_left


def nap(seconds: float) -> float:
    """Something to do."""
    time.sleep(seconds)
    return seconds


def end_normally(times: int) -> None:
    """Leave pools whose workers are idle, still begin, or are at work."""
    moments = random.Random(5)
    for _ in range(times):
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            results = [pool.starmap_async(nap, [(0.001,)]) for _ in range(4)]
            if moments.random() < 0.7:
                assert [result.get() for result in results] == [[0.001]] * 4
            pool.starmap_async(nap, [(moments.choice([0.001, 60]),)])
            time.sleep(moments.uniform(0, 0.05))
        assert multiprocessing.active_children() == []


def wait_to_be_ended() -> int:
    """Do work in a pool, as a validation does, until a signal comes."""
    stop = StopRequest()
    end_workers_with_this_process()
    with no_workers_left(), pools_that_end(), stop.on_signals():
        try:
            with stop.at_once(TrainingStopped("stopped")), multiprocessing.get_context("spawn").Pool(3) as pool:
                assert pool.starmap(nap, [(0.01,)] * 6) == [0.01] * 6
                print("ready", flush=True)
                while True:
                    pool.starmap_async(nap, [(0.02,)]).get()
                    time.sleep(0.02)
        except TrainingStopped as stopped:
            return 128 + stopped.number
        except KeyboardInterrupt:
            return 130


def lose_a_worker() -> None:
    """Let the kernel take a worker with its work, as it does when memory runs out."""
    with pools_that_end(), multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.starmap(nap, [(0.01,)])
        result = pool.starmap_async(nap, [(600,)])
        time.sleep(0.3)
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        try:
            result.get()
        except TrainingError as error:
            print(error, flush=True)


def hang_in_native_code() -> None:
    """Wait where no handler of Python's ever runs, as in a collective operation whose other side is gone."""
    stop = StopRequest(grace_s=0.5)
    mutex = (ctypes.c_char * 64)()
    lock = ctypes.CDLL(None).pthread_mutex_lock
    stopped = TrainingStopped("stopped")
    with (
        pools_that_end(),
        stop.on_signals(),
        stop.at_once(stopped),
        multiprocessing.get_context("spawn").Pool(2) as pool,
    ):
        pool.starmap(nap, [(0.01,)])
        lock(mutex)
        print("ready", flush=True)
        lock(mutex)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    # whoever runs the tests in the background, or under nohup, has these ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if what == "end_normally":
        with pools_that_end():
            end_normally(int(words[0]))
    else:
        sys.exit({"wait": wait_to_be_ended, "lose": lose_a_worker, "native": hang_in_native_code}[what]())
