"""A trainer outside nnU-Net's tree that something befalls in the middle of its second epoch.

``CTSEG_TEST_SIGNAL`` is a signal that it sends to itself, ``CTSEG_TEST_FAIL_RANK`` a rank that raises;
``CTSEG_TEST_VALIDATION_SIGNAL`` is a signal that it sends to itself when its validation begins, and
``CTSEG_TEST_NO_VALIDATION`` leaves the validation out.
"""

import os

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerInterrupted(nnUNetTrainer):
    steps = 0

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.steps = 0

    def train_step(self, batch: dict) -> dict:
        result = super().train_step(batch)
        self.steps += 1
        if self.current_epoch == 1 and self.steps == 1:
            if "CTSEG_TEST_SIGNAL" in os.environ:
                os.kill(os.getpid(), int(os.environ["CTSEG_TEST_SIGNAL"]))
            if os.environ.get("CTSEG_TEST_FAIL_RANK") == str(self.local_rank):
                raise RuntimeError("this rank fell over")
        return result

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        weights = f"of epoch {self.current_epoch}"
        self.print_to_log_file(
            f"validated with weights {weights}, mirrored along {self.inference_allowed_mirroring_axes}"
        )
        if "CTSEG_TEST_VALIDATION_SIGNAL" in os.environ:
            os.kill(os.getpid(), int(os.environ["CTSEG_TEST_VALIDATION_SIGNAL"]))
        if "CTSEG_TEST_NO_VALIDATION" not in os.environ:
            super().perform_actual_validation(save_probabilities)
