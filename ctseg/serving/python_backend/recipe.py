"""Triton python-backend model of a recipe: tells whoever asks it that ctseg's client runs its members.

This file is copied into a model repository entry and runs in Triton's stub process, so it imports nothing of ctseg.
"""

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton's stub looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Keep the name of the recipe."""
        self._name = args["model_name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request with an error that says how the recipe is run."""
        error = pb_utils.TritonError(
            f"{self._name} is a recipe of several models: it takes no requests itself; `ctseg predict -m {self._name}` "
            "runs its members"
        )
        return [pb_utils.InferenceResponse(error=error) for _ in requests]
