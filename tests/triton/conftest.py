"""One real server for all tests of the client that neither kill nor change it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from ctseg.triton import shared_memory
from ctseg.triton.configuration import spec_parameter
from tests.support.live_triton import ANSWER, HeldPatches, holding_code
from tests.support.toy_models import toy_spec, write_foreign_entry, write_toy_entry

HALF = {"input": {"name": "input", "dtype": "FP16"}, "output": {"name": "logits", "dtype": "FP16"}}
FOREIGN_CODE = {
    "broken": 'raise RuntimeError("out of luck")',
    "mortal": f"if patches[0, 0, 0, 0, 0] == 77: import os; os._exit(1)\n{ANSWER}",
    "empty": 'return pb_utils.InferenceResponse([pb_utils.Tensor("logits", self.logits(patches))])',
}


@pytest.fixture(scope="package")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests and the model ``held`` tell each other how far they are."""
    return tmp_path_factory.mktemp("events")


@pytest.fixture
def held(events: Path) -> Iterator[HeldPatches]:
    """Patches that the model ``held`` answers when they are released; at the latest after the test."""
    patches = HeldPatches(events)
    yield patches
    patches.release()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, events: Path) -> Iterator[RunningServer]:
    """A private server with models of every kind of behaviour."""
    root = tmp_path_factory.mktemp("live") / "models"
    write_toy_entry(root)
    write_toy_entry(root, toy_spec("half", **HALF))
    write_toy_entry(root, toy_spec("voting", votes={"folds": 3}))
    write_toy_entry(root, toy_spec("half_voting", votes={"folds": 3}, **HALF))
    write_foreign_entry(root, "no_spec", ANSWER)
    for name, code in {**FOREIGN_CODE, "held": holding_code(events)}.items():
        write_foreign_entry(root, name, code, parameters={spec_parameter(1): toy_spec(name).to_json()})
    future = toy_spec("future").to_json().replace('"schema_version":1', '"schema_version":99')
    heads = toy_spec("other_heads").to_json()
    write_foreign_entry(root, "future", ANSWER, parameters={spec_parameter(1): future})
    write_foreign_entry(root, "other_heads", ANSWER, parameters={spec_parameter(1): heads}, heads=4)
    write_foreign_entry(root, "misnamed", ANSWER, parameters={spec_parameter(1): toy_spec("toy").to_json()})
    before = set(shared_memory.FOLDER.glob(f"*-{os.getpid()}-*"))
    with embedded_server(root, options=ServerOptions(prove=False)) as running:
        yield running
    assert set(shared_memory.FOLDER.glob(f"*-{os.getpid()}-*")) <= before, "shared memory was left behind"
