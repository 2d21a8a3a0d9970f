"""Triton's configuration of a model, and the names of ctseg's parameters in it."""

import re

import pytest

from ctseg.container import readiness
from ctseg.errors import SpecError
from ctseg.serving.publish import PYTHON_MODEL
from ctseg.triton.configuration import (
    REQUEST_OUTPUT,
    THREADS_PARAMETER,
    ModelConfig,
    config_from_text,
    device_parameter,
    precision_hint_parameter,
    runtime_parameter,
    spec_parameter,
    spec_parameters,
    text_from_config,
)


def test_a_configuration_survives_its_text() -> None:
    config = ModelConfig(name="toy", backend="python", max_batch_size=4)
    config.parameters[spec_parameter(1)].string_value = '{"name":"tö \\" y"}'
    text = text_from_config(config)
    assert config_from_text(text, source="here") == config


def test_a_text_that_triton_could_not_read_is_named_with_its_place() -> None:
    with pytest.raises(SpecError, match=r"models/toy/config\.pbtxt: not a configuration that Triton reads: .*colour"):
        config_from_text('colour: "red"', source="models/toy/config.pbtxt")


def test_the_names_on_disk_are_those_of_every_entry_written_so_far() -> None:
    assert spec_parameter(3) == "ctseg_spec.3"
    assert runtime_parameter(3) == "ctseg_runtime.3"
    assert precision_hint_parameter(3) == "ctseg_precision_hint.3"
    assert THREADS_PARAMETER == "ctseg_threads"


def test_the_specs_of_a_configuration_are_found_among_other_parameters() -> None:
    config = ModelConfig()
    assert spec_parameters(config) == []
    for key in (spec_parameter(2), spec_parameter(1), runtime_parameter(1), THREADS_PARAMETER, "gpu_memory"):
        config.parameters[key].string_value = "x"
    assert spec_parameters(config) == ["ctseg_spec.1", "ctseg_spec.2"]


def test_the_python_backend_reads_the_parameters_that_the_repository_writes() -> None:
    """It runs inside the server, without ctseg, so it has literals of its own."""
    source = PYTHON_MODEL.read_text(encoding="utf-8")
    read = re.findall(r'parameters\.get\(f?"([^"]+)"', source)
    written = {
        THREADS_PARAMETER,
        runtime_parameter(7).replace("7", "{version}"),
        precision_hint_parameter(7).replace("7", "{version}"),
        device_parameter(7).replace("7", "{version}"),
    }
    assert set(read) == written
    assert f'_REQUEST_OUTPUT = "{REQUEST_OUTPUT}"' in source
    assert readiness._REQUEST_OUTPUT == REQUEST_OUTPUT
    assert len(read) == source.count("parameters.get("), "a parameter is read under a name that this test does not see"
