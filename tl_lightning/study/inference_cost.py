"""What a model costs in use: latency of one image, throughput of many, operations; and a step of its training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from tl_lightning.errors import UserError
from tl_lightning.flops import flop_counter

WARMUP, REPEATS = 3, 20  # calls that are not timed, and the fewest that are
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # Lightning's names


def inference_cost(
    model: nn.Module,
    image_size: int,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    device: str | torch.device = "cpu",
    precision: str = "32-true",
    warmup: int = WARMUP,
    repeats: int = REPEATS,
    seconds: float = 0.0,
) -> dict[str, float]:
    """Measure a model in eval mode on random images, and leave it as it was found.

    Modes of all submodules, device, gradients and the random number generators are as before; a call in eval mode
    changes no buffer.

    Args:
        model: Takes images [B, 3, image_size, image_size] in [0, 1].
        image_size: Side in pixels.
        batch_sizes: Images of a call, several of them.
        device: Where to measure.
        precision: Lightning's name; ``bf16-mixed`` and ``16-mixed`` measure under autocast.
        warmup: Calls before the first that is timed.
        repeats: Calls that are timed, of which the median counts.
        seconds: Go on timing for so long even after ``repeats`` calls.

    Returns:
        For each batch size ``N``: ``latency_ms_batchN`` (of the call) and ``throughput_batchN`` (images a second);
        ``inference_flops``: operations an image of matrix products and convolutions, a multiply-add counting two;
        ``parameters``.
    """
    if not batch_sizes or min(batch_sizes) < 1 or warmup < 0 or repeats < 1:
        raise UserError(
            "inference_cost needs batch sizes and repeats of at least 1 and a warm-up of at least 0, not "
            f"{list(batch_sizes)}, {repeats} and {warmup}"
        )
    found: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    with _in_eval_mode(model, device), torch.inference_mode():
        with flop_counter() as counter:
            model(_images(1, image_size, device))
        found["inference_flops"] = counter.get_total_flops()
        for size in batch_sizes:
            images = _images(size, image_size, device)
            with _autocast(device, precision):
                once = median_seconds(lambda: model(images), device, warmup, repeats, seconds)  # noqa: B023
            found |= {f"latency_ms_batch{size}": 1000 * once, f"throughput_batch{size}": size / once}
    return found


def training_step_cost(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    precision: str = "32-true",
    warmup: int = 1,
    repeats: int = 5,
) -> dict[str, float]:
    """Measure a training step (forward, backward, AdamW) of all parameters; the model's weights change.

    Args:
        model: Returns logits for ``image``, on the same device.
        image: Images [B, 3, H, W] in [0, 1].
        label: Labels [B].
        precision: As for ``inference_cost``.
        warmup: Steps before the first that is timed.
        repeats: Steps that are timed, of which the median counts.

    Returns:
        ``step_seconds``; ``step_flops``: operations an image, forward and backward.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        with _autocast(image.device, precision):
            logits = model(image)
        torch.nn.functional.cross_entropy(logits.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    with flop_counter() as counter:
        step()
    seconds = median_seconds(step, image.device, warmup, repeats)
    return {"step_seconds": seconds, "step_flops": counter.get_total_flops() / len(image)}


def median_seconds(
    call: Callable[[], object], device: str | torch.device, warmup: int = WARMUP, repeats: int = REPEATS,
    seconds: float = 0.0,
) -> float:  # fmt: skip
    """Return the median time of a call; on CUDA each is waited for.

    Args:
        call: What to time.
        device: Where it runs.
        warmup: Calls before the first that is timed.
        repeats: Calls that are timed at least.
        seconds: Go on for so long even after ``repeats`` calls.
    """
    for _ in range(warmup):
        call()
    times: list[float] = []
    _synchronise(device)
    begin = time.perf_counter()
    while len(times) < repeats or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def _in_eval_mode(model: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Keep the model in eval mode on the device, then give every submodule its own mode back."""
    modes = {module: module.training for module in model.modules()}
    home = next((parameter.device for parameter in model.parameters()), torch.device(device))
    model.to(device).eval()
    try:
        yield
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training


def _images(count: int, image_size: int, device: str | torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)  # its own, so that the global one stays where it was
    return torch.rand(count, 3, image_size, image_size, generator=generator).to(device)


def _autocast(device: str | torch.device, precision: str) -> AbstractContextManager[object]:
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def _synchronise(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
