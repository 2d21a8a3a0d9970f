"""One build, in a process of its own.

The entry point becomes tritonserver by exec, which keeps neither memory nor threads, but it would keep what a
build leaves in the process itself: open files of the GPU, the CPUs that a runtime has pinned it to. And it is the
first process of its container, where SIGTERM does nothing by default: a Python handler would wait until a compiler
at work returns. A process of its own ends at once, takes all of that with it, and may crash.
"""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.container.build_words import BuildWords
from ctseg.container.log import log_to_standard_error
from ctseg.documents import Document
from ctseg.errors import CtsegError

if TYPE_CHECKING:
    from ctseg.serving.entries import Entry

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


class BuiltVersions(Document):
    """The versions for this machine; the process's answer, as JSON on its standard output.

    Attributes:
        versions: By the name of the model or recipe, built now or before.
    """

    versions: Mapping[str, int]


def _built(job: BuildJob) -> Mapping[str, int]:
    from ctseg.deploy.build import build_entry
    from ctseg.deploy.recipe_build import build_recipe
    from ctseg.deploy.recipe_bundle import is_recipe_bundle

    versions: dict[str, int] = {}

    def build(*arguments: Any, **more: Any) -> "Entry":
        entry = build_entry(*arguments, **more)
        versions[entry.name] = entry.newest.version
        return entry

    options = job.words.options()
    if is_recipe_bundle(job.bundle):
        recipe, version = build_recipe(job.bundle, job.repository, options, build=build)
        versions[recipe.name] = version
    else:
        build(job.bundle, job.repository, options)
    return versions


def main() -> int:
    """Build; return an exit status."""
    log_to_standard_error()
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # native libraries print there
    job = BuildJob.model_validate_json(sys.stdin.read())
    try:
        built = BuiltVersions(versions=_built(job))
    except (CtsegError, ValueError) as error:
        settings = [name for name in getattr(error, "settings", ()) if name in BuildWords.model_fields]
        advice = f" (CTSEG_BUILD_OPTIONS takes {', '.join(f'--{name}' for name in settings)})" if settings else ""
        _log.error("%s: %s%s", type(error).__name__, error, advice)
        return 2
    os.write(answer, built.model_dump_json().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
