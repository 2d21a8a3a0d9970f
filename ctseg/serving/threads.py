"""Whether this user may start the threads that a run needs: gRPC and Triton end the process where they may not."""

import threading

from ctseg.compiled.cpus import usable_cpus
from ctseg.errors import SetupError


def threads_of_run(*, starts_server: bool) -> int:
    """Return how many threads a run needs at least, its own server's among them.

    With a server 78 were measured on two CPUs, with one model. Pools grow with the CPUs.
    """
    return (72 if starts_server else 24) + 2 * usable_cpus()


def require_threads(count: int) -> None:
    """Start so many threads at once, for a moment: whatever limits them shows then and there.

    Raises:
        SetupError: Fewer can be started.
    """
    released = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=released.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        raise SetupError(
            f"this run needs {count} threads at least, and only {len(threads)} can be started here: raise the limit of "
            "processes (ulimit -u, the container's, a service's TasksMax)"
        ) from error
    finally:
        released.set()
        for thread in threads:
            thread.join()
