"""S8: throughput on a GPU, bf16, channels last, synthetic images."""

from __future__ import annotations

import time

import torch
from peers.job import Job, Network, Peer
from torch import nn
from torchvision.models import get_model

from scenarios.measure import Prepare, Result, Row, Run, Target, interleave, ratio
from scenarios.workload import BARE, OURS, blocks, contenders
from tl_lightning.flops import flop_counter

KEYS = ("lightning", "fastai", "timm", "bare", "ours-study")
MODELS = ("resnet50", "efficientnet_b0")
CLASSES, PIXELS = 100, 224
WARMUP, STEPS = 20, 60  # batches of a fit: not timed, timed
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "T4": 65.0}  # dense bf16/fp16


def gpu_throughput(repeats: int, batch_size: int = 256, peak_tflops: float | None = None) -> Result:
    """S8: full fine-tuning; every contender with and without ``torch.compile``."""
    if not torch.cuda.is_available():
        return Result("S8", "GPU", notes=["skipped: no GPU"])
    card = torch.cuda.get_device_name()
    result = Result("S8", f"{card}, {PIXELS} px, bf16, channels last, batch of {batch_size}")
    peak = peak_tflops or next((v for name, v in PEAK_TFLOPS.items() if name in card), None)
    for model in MODELS:
        data = _images(batch_size * 4, torch.device("cuda"))
        flops = _step_flops(model, data[0][:8]) / 8
        for compiled in (False, True):
            suffix = f"{model}{', compiled' if compiled else ''}"
            runs = {f"{name}, {suffix}": _fit(cls, model, data, compiled) for name, cls in contenders(KEYS).items()}
            for name, values in interleave(runs, repeats, lambda run: run()).items():  # type: ignore[arg-type,return-value]
                result.rows.append(Row("S8", name, "images/s", values))
            _judge(result, suffix, flops, peak)
    return result


class Clock:
    """Takes the time from the fetch of batch ``first`` to that of batch ``last``; the device is awaited at both."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.count, self.seconds = first, last, 0, 0.0

    def __call__(self) -> None:
        self.count += 1
        if self.count in (self.first, self.last):
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds


def _fit(cls: type[Peer], model: str, data: tuple[torch.Tensor, torch.Tensor], compiled: bool) -> Prepare:
    """Return what makes a fit that returns its images a second after compilation and warm-up."""

    def prepare() -> Run:
        clock, size = Clock(WARMUP, WARMUP + STEPS), len(data[0]) // 4
        job = _job(model, data, size, compiled).but(tick=clock)

        def run() -> float:
            torch._dynamo.reset()
            cls().fit(job)
            return STEPS * size / clock.seconds

        return run

    return prepare


def _judge(result: Result, suffix: str, flops: float, peak: float | None) -> None:
    ours = result.median(f"{OURS}, {suffix}")
    bare = result.median(f"{BARE}, {suffix}")
    peers = [f"{name}, {suffix}" for name in contenders(("lightning", "fastai", "timm"))]
    result.targets += [
        Target("S8", f"{suffix}: throughput / bare PyTorch loop", ratio(ours, bare), 0.95, "at least"),
        Target("S8", f"{suffix}: throughput / fastest peer", ratio(ours, result.best(peers, True)), 1.0, "at least"),
    ]
    if ours is not None and peak is not None:
        result.notes.append(f"{suffix}: model FLOP utilisation {ours * flops / (peak * 1e12):.1%} of {peak:g} TFLOP/s")


def _images(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.randn(count, 3, PIXELS, PIXELS, device=device).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, CLASSES, (count,), device=device)


def _network(model: str) -> Network:
    torch.manual_seed(0)
    layers = blocks(get_model(model, num_classes=CLASSES))
    return Network(nn.Sequential(*layers[:-1]), layers[-1])


def _job(model: str, data: tuple[torch.Tensor, torch.Tensor], batch_size: int, compiled: bool) -> Job:
    network = _network(model).to(data[0].device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(data[0]) // batch_size
    return Job(
        network,
        data,
        schedule={0: 0},
        epochs=(WARMUP + STEPS) // steps + 1,
        batch_size=batch_size,
        compiled=compiled,
        precision="bf16",
    )


def _step_flops(model: str, images: torch.Tensor) -> float:
    network = _network(model).to(images.device)
    with flop_counter() as counter:
        network(images).sum().backward()
    return counter.get_total_flops()
