"""One build, in a process of its own.

The entry point becomes tritonserver by exec, which keeps neither memory nor threads, but it would keep what a
build leaves in the process itself: open files of the GPU, the CPUs that a runtime has pinned it to. And it is the
first process of its container, where SIGTERM does nothing by default: a Python handler would wait until a compiler
at work returns. A process of its own ends at once, takes all of that with it, and may crash.
"""

import logging
import os
import sys
from pathlib import Path

from ctseg.container.build_words import BuildWords
from ctseg.container.log import log_to_standard_error
from ctseg.documents import Document
from ctseg.errors import CtsegError

_log = logging.getLogger("ctseg.container.build_process")  # not __name__, which is "__main__" in its process


class BuildJob(Document):
    """What is asked of the process, as JSON on its standard input.

    Attributes:
        bundle: Folder of the bundle.
        repository: Triton's model repository.
        words: How.
    """

    bundle: Path
    repository: Path
    words: BuildWords


class BuiltVersion(Document):
    """The version for this machine; the process's answer, as JSON on its standard output.

    Attributes:
        name: Name of the model.
        version: Its version, which was built now or before.
    """

    name: str
    version: int


def main() -> int:
    """Build; return an exit status."""
    log_to_standard_error()
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # native libraries print there
    job = BuildJob.model_validate_json(sys.stdin.read())
    from ctseg.deploy.build import build_entry

    try:
        entry = build_entry(job.bundle, job.repository, job.words.options())
    except (CtsegError, ValueError) as error:
        settings = [name for name in getattr(error, "settings", ()) if name in BuildWords.model_fields]
        advice = f" (CTSEG_BUILD_OPTIONS takes {', '.join(f'--{name}' for name in settings)})" if settings else ""
        _log.error("%s: %s%s", type(error).__name__, error, advice)
        return 2
    built = BuiltVersion(name=entry.name, version=entry.newest.version)
    os.write(answer, built.model_dump_json().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
