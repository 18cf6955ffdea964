"""The outcome of a check, and the small network and data that all checks train."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peers.job import Job, Network, Peer
from peers.recorder import Recorder
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

PARTS = ("stem", "layer1", "layer2", "layer3")
STEPS = 4  # of an epoch


@dataclass(frozen=True)
class Verdict:
    """What a peer did: passed, failed, or has no such feature; and why, in one line."""

    status: Literal["pass", "FAIL", "n/a"]
    reason: str = ""


def judge(problems: Iterable[str], passed: str = "") -> Verdict:
    """Return FAIL with the problems, or pass."""
    problems = list(problems)
    return Verdict("FAIL", "; ".join(problems)) if problems else Verdict("pass", passed)


def small_job(peer: Peer, **changes: Any) -> Job:
    """Return a job: 64 digits in 4 batches, a residual network with BatchNorm, thawed as gradually as the peer can.

    The groups are two parts of the backbone and the head, or the whole backbone and the head.
    """
    two = (("backbone.stem", "backbone.layer1"), ("backbone.layer2", "backbone.layer3"), ("head",))
    one = (("backbone",), ("head",))
    job = Job(
        small_network(), digits(0, 64), digits(64, 96), groups=two if peer.gradual else one, batch_size=64 // STEPS
    )
    return job.but(schedule={0: len(job.groups) - 1}, recorder=Recorder(), **changes)


def thaw_at(job: Job, *epochs: int) -> Job:
    """Return the job with a schedule that thaws one group more at each epoch, all of them at the last."""
    depths = range(len(job.groups) - 2, -1, -1)
    late = list(epochs)[-len(depths) :]
    return job.but(schedule={0: len(job.groups) - 1, **dict(zip(late, list(depths)[-len(late) :], strict=True))})


def small_network(seed: int = 0) -> Network:
    """Return a residual network of 80,000 parameters with fresh weights."""
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = OrderedDict(stem=stem, layer1=_block(16, 16), layer2=_block(16, 32), layer3=_block(32, 64))
    ends = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    return Network(nn.Sequential(OrderedDict(**blocks, **ends)), nn.Linear(64, 10))


def _block(inputs: int, outputs: int) -> BasicBlock:
    if inputs == outputs:
        return BasicBlock(inputs, outputs)
    down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, 2, down)


def digits(start: int, end: int) -> tuple[Tensor, Tensor]:
    """Return handwritten digits [N, 3, 16, 16] in [-1, 1], enlarged, and their classes."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels[start:end]).float().view(-1, 1, 8, 8) / 8 - 1
    images = nn.functional.interpolate(images, size=16, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    return images, torch.from_numpy(labels[start:end])


def brief(error: BaseException) -> str:
    """Return an error in one short line."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:90]}{'...' if len(text) > 90 else ''}"
