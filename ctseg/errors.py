"""Everything that ctseg raises on purpose.

A ``ValueError`` is the caller's bug. A :class:`CtsegError` is the world's fault (a file, a spec, a
server), and its message says which case or model, what was expected, what was found, and what to do::

    CtsegError
    ├── InputError                 a scan, a folder of scans, or a dataset that cannot be used
    ├── OutputError                a result that could not be written (permission, disk full)
    ├── SetupError                 this machine or command line lacks something: an extra, a path, a GPU
    ├── SpecError                  a model spec, bundle or model repository entry is wrong or foreign
    ├── CheckpointError            a trained model folder or checkpoint is incomplete or not trusted
    ├── ParityError                a graph does not give the labels that the checkpoint gives
    ├── TrainingError              a training cannot start, continue or finish
    ├── PacsError                  a PACS refused, or answered what is no DICOMweb
    │   └── PacsAwayError              no answer, or none for now: refused, lost, overloaded, starting
    └── ServerError                Triton answered with an error
        ├── ServerUnavailableError     no answer: refused, shutting down, overloaded, connection lost
        │   └── ServerAwayError            every server that answered once has been away for too long
        ├── ServerTimeoutError         no answer within the time allowed
        ├── ModelNotFoundError         the server has no such model or version
        ├── RequestRejectedError       the server understood and refused (shape, dtype, name, access)
        └── InferenceFailedError       the model failed while it ran

Foreign exceptions are translated in one place per library and chained with ``from``.

A message names no flag of the command line: Python users read it too. Where a setting would help, the error
carries its name, and the command line adds the flag.
"""


class CtsegError(Exception):
    """Base of every error that ctseg raises on purpose.

    Args:
        message: Which case or model, what was expected, what was found, what to do; no flags.
        settings: Names of the parameters that would help, as the Python interface has them, such as
            ``case_timeout_s``.
    """

    def __init__(self, message: str = "", *, settings: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.settings = settings


class InputError(CtsegError):
    """A scan, a folder of scans, or a dataset cannot be used."""


class OutputError(CtsegError):
    """A result could not be written; nothing half-written is left."""


class SetupError(CtsegError):
    """This machine, installation or command line lacks something that the command needs."""


class SpecError(CtsegError):
    """A model spec, a bundle or a model repository entry is wrong, foreign or inconsistent."""


class CheckpointError(CtsegError):
    """A trained model folder or checkpoint is incomplete, unreadable or not trusted."""


class ParityError(CtsegError):
    """A graph or a server does not give the labels that the checkpoint gives."""


class TrainingError(CtsegError):
    """A training cannot start, continue or finish."""


class PacsError(CtsegError):
    """A PACS refused a request, or answered with something that is no DICOMweb."""


class PacsAwayError(PacsError):
    """A PACS gave no answer, or none for now: worth trying again."""


class ServerError(CtsegError):
    """Triton answered with an error."""


class ServerUnavailableError(ServerError):
    """No answer: connection refused or lost, server starting, stopping or overloaded."""


class ServerAwayError(ServerUnavailableError):
    """Every server has been away for as long as the caller waits: what is not done is left, not failed."""


class ServerTimeoutError(ServerError):
    """No answer within the time allowed."""


class ModelNotFoundError(ServerError):
    """The server has no model, or no version of it, by that name."""


class RequestRejectedError(ServerError):
    """The server understood the request and refused it: shape, dtype, name or access."""


class InferenceFailedError(ServerError):
    """The model failed while it ran; the server may not recover."""


def missing_package(package: str, *, needed_for: str, extra: str) -> SetupError:
    """Return the error for a package that is not installed.

    Args:
        package: The package, or several, as a reader knows them.
        needed_for: What cannot be done without it.
        extra: Which of ctseg's extras brings it.
    """
    return SetupError(
        f"{needed_for} needs {package}, which is not installed here: install ctseg with its extra {extra!r}, as "
        "docs/install.md shows"
    )
