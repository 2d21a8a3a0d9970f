"""Checkpoints: what nnU-Net writes is read, what could run code is refused by name in every use."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ctseg.deploy.trained_model import load_trained_model
from ctseg.errors import CheckpointError
from ctseg.nnunet.checkpoint import read_checkpoint
from ctseg.train.checkpoints import training_state
from ctseg.train.pretrained import weights_in
from tests.support.nnunet_reference import make_dataset, make_plans, make_trained_folder


def written_by_nnunet(folder: Path) -> Path:
    """A checkpoint that nnU-Net's own trainer writes after an epoch, with all that it logs."""
    network = torch.nn.Conv3d(1, 3, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    network(torch.ones(1, 1, 2, 2, 2)).sum().backward()
    optimizer.step()
    trainer = SimpleNamespace(
        network=network,
        optimizer=optimizer,
        grad_scaler=torch.amp.GradScaler("cpu"),
        logger=MetaLogger(str(folder), False),
        my_init_kwargs={
            "plans": make_plans(),
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": make_dataset(),
            "device": torch.device("cpu"),
        },
        inference_allowed_mirroring_axes=(0, 1, 2),
        local_rank=0,
        disable_checkpointing=False,
        is_ddp=False,
        current_epoch=0,
        _best_ema=None,
    )
    nnUNetTrainer.on_epoch_start(trainer)
    trainer.logger.log("lrs", optimizer.param_groups[0]["lr"], 0)
    nnUNetTrainer.on_train_epoch_end(trainer, [{"loss": np.array(0.5, np.float32)}])
    counts = {name: np.array([3.0, 4.0], np.float32) for name in ("tp_hard", "fp_hard", "fn_hard")}
    nnUNetTrainer.on_validation_epoch_end(trainer, [{"loss": np.array(0.5, np.float32), **counts}])
    trainer.logger.log("epoch_end_timestamps", 1.5, 0)
    trainer._best_ema = trainer.logger.get_value("ema_fg_dice", step=-1)
    file = folder / "checkpoint_final.pth"
    nnUNetTrainer.save_checkpoint(trainer, str(file))
    return file


@pytest.mark.parametrize("mapped", [False, True])
def test_what_nnunets_trainer_writes_is_read_as_it_was_written(tmp_path: Path, mapped: bool) -> None:
    file = written_by_nnunet(tmp_path)
    found, whole = read_checkpoint(file, mapped=mapped), torch.load(file, weights_only=False)
    assert found.keys() == whole.keys()
    assert isinstance(whole["_best_ema"], np.floating)  # else the list of numpy's types would prove nothing here
    assert found["logging"] == whole["logging"]
    assert found["init_args"] == whole["init_args"]
    assert found["grad_scaler_state"] == whole["grad_scaler_state"]
    assert torch.equal(found["network_weights"]["weight"], whole["network_weights"]["weight"])
    momentum = whole["optimizer_state"]["state"][0]["momentum_buffer"]
    assert torch.equal(found["optimizer_state"]["state"][0]["momentum_buffer"], momentum)


@pytest.mark.parametrize(
    "dtype",
    "bool float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64".split(),  # noqa: SIM905
)
def test_numpy_scalars_and_arrays_of_numbers_are_read(tmp_path: Path, dtype: str) -> None:
    array = np.array([[0, 1], [2, 3]]).astype(dtype)
    torch.save({"scalar": array[0, 1], "array": array}, tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth")
    assert found["scalar"] == array[0, 1]
    assert found["scalar"].dtype == dtype
    np.testing.assert_array_equal(found["array"], array)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        from os import mkdir

        return mkdir, (self.file,)


USES: dict[str, Callable[[Path], object]] = {
    "export": lambda folder: load_trained_model(folder),
    "training goes on": lambda folder: training_state(folder / "fold_0"),
    "training begins with weights": lambda folder: weights_in(folder / "fold_0" / "checkpoint_final.pth"),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("place", ["network_weights", "logging", "_best_ema"])
def test_foreign_function_is_refused_by_name_in_every_use(tmp_path: Path, use: str, place: str) -> None:
    folder = make_trained_folder(tmp_path / "model", make_plans(), make_dataset())
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=False), place: Bomb(tmp_path / "ran")}, file)
    with pytest.raises(CheckpointError, match=r"checkpoint_final.pth: holds more than weights.* GLOBAL \w+\.mkdir"):
        USES[use](folder)
    assert not (tmp_path / "ran").exists()


def test_trust_is_offered_only_where_there_is_a_setting_for_it(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"x": Bomb(tmp_path / "ran")}, file)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file)
    assert (caught.value.settings, "trusted" in str(caught.value)) == ((), False)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file, trust_setting="trust_checkpoint")
    assert (caught.value.settings, "trusted" in str(caught.value)) == (("trust_checkpoint",), True)
    assert read_checkpoint(file, trust=True) == {"x": None}
    assert (tmp_path / "ran").exists()


def test_missing_damaged_and_other_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    with pytest.raises(CheckpointError, match=r"x.pth: cannot be read \(No such file"):
        read_checkpoint(file)
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match=r"expected nnU-Net's dictionary, found list"):
        read_checkpoint(file)
    torch.save({"weights": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"x.pth: damaged or not copied whole"):
        read_checkpoint(file)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"no checkpoint at all", b"\x80\x02.", bytes(range(256))])
def test_bytes_that_are_no_checkpoint_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "checkpoint_final.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint_final\.pth: "):
        read_checkpoint(file)
