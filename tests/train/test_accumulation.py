"""Accumulated batches make the step that the large batch makes."""

import itertools
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ctseg.errors import SetupError
from ctseg.train.extended_trainer import extended
from ctseg.train.options import TrainingOptions
from ctseg.train.trainers.nnUNetTrainerSwinUNETR import nnUNetTrainerSwinUNETR
from tests.support.tiny_trainings import TinyNnunet
from tests.support.trainers import CPU, make_batches, make_trainer


def part_of(batch: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    target = batch["target"]
    cut = [t[begin:end] for t in target] if isinstance(target, list) else target[begin:end]
    return {"data": batch["data"][begin:end], "target": cut}


def parameters_after(trainer: Any, batches: list[dict[str, Any]], parts: int) -> tuple[list[float], torch.Tensor]:
    small = [
        part_of(batch, i * len(batch["data"]) // parts, (i + 1) * len(batch["data"]) // parts)
        for batch in batches
        for i in range(parts)
    ]
    trainer.dataloader_train = iter(small)
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    losses = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in batches]
    assert next(trainer.dataloader_train, None) is None, "not every small batch was used"
    return losses, torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])


def scale_loss(trainer: Any, factor: float) -> None:
    loss = trainer.loss
    trainer.loss = lambda output, target: factor * loss(output, target)


@pytest.mark.parametrize("factor", [1.0, 1000.0], ids=["unclipped", "clipped"])
def test_two_accumulated_batches_of_two_equal_a_batch_of_four(tiny: TinyNnunet, factor: float) -> None:
    large = make_trainer(tiny, TrainingOptions(batch_size=4))
    scale_loss(large, factor)
    start = torch.cat([parameter.detach().clone().flatten() for parameter in large.network.parameters()])
    batches = make_batches(large, steps=3, size=4)
    losses, expected = parameters_after(large, batches, parts=1)
    accumulated = make_trainer(tiny, TrainingOptions(batch_size=2, gradient_accumulation_steps=2))
    scale_loss(accumulated, factor)
    found_losses, found = parameters_after(accumulated, batches, parts=2)
    assert found_losses == pytest.approx(losses, rel=1e-5)
    moved = (expected - start).norm()
    assert moved > 1e-3
    norm = torch.cat([p.grad.flatten() for p in large.network.parameters() if p.grad is not None]).norm()
    # gradients stay as clipping left them
    assert norm == pytest.approx(12, rel=1e-3) if factor > 1 else norm < 12
    # a step with the sum instead of the mean, or one step per small batch, is off by the order of `moved`
    assert (found - expected).norm() <= 2e-4 * moved


def test_a_step_of_accumulated_batches_is_one_step_of_the_schedule(tiny: TinyNnunet) -> None:
    trainer = make_trainer(tiny, TrainingOptions(batch_size=2, epochs=4, gradient_accumulation_steps=2))
    steps = itertools.count()
    trainer.optimizer.register_step_post_hook(lambda *_: next(steps))
    batches = make_batches(trainer, steps=2, size=4)
    parameters_after(trainer, batches, parts=2)
    assert next(steps) == 2
    trainer.lr_scheduler.step(1)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - 1 / 4) ** 0.9)


def test_batch_dice_is_named_as_a_difference(tiny: TinyNnunet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ctseg")
    make_trainer(tiny, TrainingOptions(batch_size=2, gradient_accumulation_steps=2), batch_dice=True)
    assert "2 accumulated batches of 2 are not exactly one batch of 4: batch_dice is true" in caplog.text
    caplog.clear()
    make_trainer(tiny, TrainingOptions(batch_size=2, gradient_accumulation_steps=2), batch_dice=False)
    assert "not exactly" not in caplog.text


def test_amp_on_the_cpu_computes_in_bfloat16(tiny: TinyNnunet) -> None:
    seen = set()
    trainer = make_trainer(tiny, TrainingOptions(batch_size=2, amp=True))
    layer = next(module for module in trainer.network.modules() if isinstance(module, torch.nn.Conv3d))
    layer.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
    losses, _ = parameters_after(trainer, make_batches(trainer, steps=1, size=2), parts=1)
    assert seen == {torch.bfloat16}
    full = make_trainer(tiny, TrainingOptions(batch_size=2))
    expected, _ = parameters_after(full, make_batches(full, steps=1, size=2), parts=1)
    assert losses == pytest.approx(expected, rel=0.02)


class OwnStep(nnUNetTrainer):
    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        return super().train_step(batch)


@pytest.mark.parametrize("asked", [None, True])
def test_mixed_precision_goes_to_another_device_only_where_it_was_asked_for(
    tiny: TinyNnunet, monkeypatch: pytest.MonkeyPatch, asked: bool | None
) -> None:
    trainer = make_trainer(tiny, TrainingOptions(amp=asked))
    # as on a GPU, where it is on unless told
    monkeypatch.setattr(trainer, "amp", True)
    assert trainer.record()["mixed_precision"] is True
    options, changes = TrainingOptions().continued_from(TrainingOptions.from_record(trainer.record()))
    assert (options.amp, changes) == (asked, [])
    if asked is None:
        assert make_trainer(tiny, options, cls=OwnStep).amp is False
    else:
        with pytest.raises(SetupError, match=r"where a training goes on that had them, .*mixed precision off"):
            make_trainer(tiny, options, cls=OwnStep)
        options, _ = TrainingOptions(amp=False).continued_from(options)
        assert make_trainer(tiny, options, cls=OwnStep).amp is False


@pytest.mark.parametrize("amp", [None, False])
def test_validation_after_an_epoch_leaves_autocast_where_there_is_no_amp(
    tiny: TinyNnunet, monkeypatch: pytest.MonkeyPatch, amp: bool | None
) -> None:
    class AsOnCuda(nnUNetTrainer):
        # what nnU-Net does on CUDA, where no CUDA is needed to do it
        def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
            torch.set_autocast_enabled("cuda", True)
            try:
                self.network(batch["data"])
                seen.append(torch.is_autocast_enabled("cuda"))
            finally:
                torch.set_autocast_enabled("cuda", False)
            return {}

    seen: list[bool] = []
    trainer = make_trainer(tiny, TrainingOptions(), cls=AsOnCuda)
    trainer.network.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cuda")))
    monkeypatch.setattr(trainer, "device", torch.device("cuda"))
    monkeypatch.setattr(trainer, "amp", amp is not False)
    trainer.validation_step(make_batches(trainer, steps=1, size=1)[0])
    # in the network, and after it: the loss stays where nnU-Net has it
    assert seen == [amp is not False, True]
    assert not trainer.network._forward_pre_hooks


def test_a_trainer_with_its_own_step_refuses_what_it_cannot_do(tiny: TinyNnunet) -> None:
    with pytest.raises(
        SetupError, match=r"OwnStep has a training step of its own.*gradient accumulation.*ask for neither"
    ):
        extended(OwnStep, TrainingOptions(gradient_accumulation_steps=2), CPU)
    assert extended(OwnStep, TrainingOptions(batch_size=2), CPU).__name__ == "OwnStep"


def test_a_trainer_that_ignores_the_learning_rate_is_found_out(tiny: TinyNnunet) -> None:
    class OwnRate(nnUNetTrainer):
        def configure_optimizers(self) -> Any:
            self.initial_lr = 0.5
            return super().configure_optimizers()

    with pytest.raises(SetupError, match=r"OwnRate sets its own learning rate \(0.5\)") as caught:
        make_trainer(tiny, TrainingOptions(lr=1e-3), cls=OwnRate)
    assert "lr" in caught.value.settings


def test_swin_unetr_takes_a_step_with_its_own_optimizer(tiny: TinyNnunet) -> None:
    trainer = make_trainer(tiny, TrainingOptions(batch_size=1, lr=3e-4, epochs=100), cls=nnUNetTrainerSwinUNETR)
    assert type(trainer).__name__ == "nnUNetTrainerSwinUNETR"
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    losses, _ = parameters_after(trainer, make_batches(trainer, steps=1, size=1), parts=1)
    assert 0 < losses[0] < 5
