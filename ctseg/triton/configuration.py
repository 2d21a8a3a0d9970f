"""The configuration of a model as Triton has it, and the parameters that ctseg writes into it."""

from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ctseg.errors import SpecError

ModelConfig = model_config_pb2.ModelConfig
"""Triton's protobuf message of a model's configuration."""

THREADS_PARAMETER = "ctseg_threads"
"""CPU threads of one instance of the python backend; absent shares the CPUs among them."""

REQUEST_OUTPUT = "ctseg_request"
"""Output in which ctseg's python backend gives back the id of the request that it answers, as an integer.

Triton 2.51 mixes up answers of a python backend after it was stopped and woken, and says nothing.
"""

_SPEC_PREFIX = "ctseg_spec."
_RECIPE_PREFIX = "ctseg_recipe."
_SCAN_PREFIX = "ctseg_scan."
_RUNTIME_PREFIX = "ctseg_runtime."
_PRECISION_HINT_PREFIX = "ctseg_precision_hint."
_DEVICE_PREFIX = "ctseg_device."


def spec_parameter(version: int) -> str:
    """Return the name of the parameter that holds the spec of a model version, as JSON."""
    return f"{_SPEC_PREFIX}{version}"


def recipe_parameter(version: int) -> str:
    """Return the name of the parameter that holds a version of a recipe, as JSON."""
    return f"{_RECIPE_PREFIX}{version}"


def scan_parameter(version: int) -> str:
    """Return the name of the parameter by which an entry for whole scans says the digest of the spec of a version."""
    return f"{_SCAN_PREFIX}{version}"


def runtime_parameter(version: int) -> str:
    """Return the name of the parameter that says what the python backend runs a version with."""
    return f"{_RUNTIME_PREFIX}{version}"


def precision_hint_parameter(version: int) -> str:
    """Return the name of the parameter that holds OpenVINO's inference precision for a version."""
    return f"{_PRECISION_HINT_PREFIX}{version}"


def device_parameter(version: int) -> str:
    """Return the name of the parameter that says where the python backend runs a version: ``gpu``; absent is CPU."""
    return f"{_DEVICE_PREFIX}{version}"


def names_requests(config: Any) -> bool:
    """Whether a model says with each answer which request it belongs to, see :data:`REQUEST_OUTPUT`."""
    return any(tensor.name == REQUEST_OUTPUT for tensor in config.output)


def spec_parameters(config: Any) -> list[str]:
    """Return the names of the parameters of a :data:`ModelConfig` that hold specs, in order."""
    return sorted(key for key in config.parameters if key.startswith(_SPEC_PREFIX))


def recipe_parameters(config: Any) -> list[str]:
    """Return the names of the parameters of a :data:`ModelConfig` that hold recipes, in order."""
    return sorted(key for key in config.parameters if key.startswith(_RECIPE_PREFIX))


def scan_parameters(config: Any) -> list[str]:
    """Return the names of the parameters of a :data:`ModelConfig` by which it takes whole scans, in order."""
    return sorted(key for key in config.parameters if key.startswith(_SCAN_PREFIX))


def config_from_text(text: str, *, source: str) -> Any:
    """Parse a ``config.pbtxt``.

    Args:
        text: Protobuf's text format.
        source: Where it comes from, for the error message.

    Returns:
        A :data:`ModelConfig`.

    Raises:
        SpecError: It is not Triton's message.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise SpecError(f"{source}: not a configuration that Triton reads: {error}") from error


def text_from_config(config: Any) -> str:
    """Return the content of a ``config.pbtxt``: protobuf's text format, to be written as UTF-8."""
    return str(text_format.MessageToString(config))
