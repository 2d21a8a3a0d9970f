"""One optimizer step from several small batches, in the precision that was asked for."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def autocast(device: torch.device, amp: bool) -> Any:
    """Return the context of mixed precision: float16 on CUDA, bfloat16 elsewhere; nothing without ``amp``."""
    if not amp:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.float16 if device.type == "cuda" else torch.bfloat16)


def accumulated_step(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Make the step that one large batch would make, from ``trainer.accumulation_steps`` small ones.

    Args:
        trainer: An extended trainer.
        batch: The first small batch; the others come from the trainer's loader.

    Returns:
        ``loss``, the mean over the small batches, as nnU-Net's ``train_step`` does.
    """
    trainer.optimizer.zero_grad(set_to_none=True)
    mean_loss = torch.zeros((), device=trainer.device)
    for step in range(trainer.accumulation_steps):
        is_last = step == trainer.accumulation_steps - 1
        small_batch = batch if step == 0 else next(trainer.dataloader_train)
        # gradients travel between processes once, with the last batch
        with contextlib.nullcontext() if is_last or not trainer.is_ddp else trainer.network.no_sync():
            with autocast(trainer.device, trainer.amp):
                output = trainer.network(_onto(small_batch["data"], trainer.device))
                loss = trainer.loss(output, _onto(small_batch["target"], trainer.device)) / trainer.accumulation_steps
            (loss if trainer.grad_scaler is None else trainer.grad_scaler.scale(loss)).backward()
        mean_loss += loss.detach()
    _clip_and_step(trainer)
    return {"loss": mean_loss.cpu().numpy()}


def _clip_and_step(trainer: Any) -> None:
    scaler = trainer.grad_scaler
    if scaler is not None:
        scaler.unscale_(trainer.optimizer)
    torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), trainer.clip_norm)
    if scaler is None:
        trainer.optimizer.step()
    else:
        scaler.step(trainer.optimizer)
        scaler.update()


@contextlib.contextmanager
def without_autocast(network: torch.nn.Module, device_type: str) -> Iterator[None]:
    """Let passes of a network leave the autocast that is entered around them."""
    left = contextlib.ExitStack()

    def leave(*_: Any) -> None:
        left.enter_context(torch.autocast(device_type, enabled=False))

    def come_back(*_: Any) -> None:
        left.close()

    hooks = (
        network.register_forward_pre_hook(leave, prepend=True),
        network.register_forward_hook(come_back, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _onto(data: Any, device: torch.device) -> Any:
    if isinstance(data, list):
        return [part.to(device, non_blocking=True) for part in data]
    return data.to(device, non_blocking=True)
