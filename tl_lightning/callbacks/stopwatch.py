"""Time spans on the device that trains, measured without making the host wait for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

Mark = float | torch.cuda.Event


@dataclass
class Span:
    """A stretch of training between two marks.

    Attributes:
        start: When it began.
        end: When it ended.
        images: Images trained in it on this process.
        steps: Training batches in it.
        steady: Whether it belongs to the throughput (it holds no warm-up step and no counted one).
    """

    start: Mark
    end: Mark
    images: int
    steps: int
    steady: bool


@dataclass
class Stopwatch:
    """Collects spans; on CUDA by events in the stream, so that only ``seconds`` waits, once.

    Attributes:
        device: The device that trains.
        spans: The spans so far.
    """

    device: torch.device
    spans: list[Span] = field(default_factory=list)
    _start: Mark | None = None
    _images: int = 0
    _steps: int = 0

    @property
    def running(self) -> bool:
        """Whether a span is open."""
        return self._start is not None

    def start(self) -> None:
        """Open a span, unless one is open."""
        if self._start is None:
            self._start = self._mark()

    def count(self, images: int) -> None:
        """Add a training batch to the open span."""
        self._images += images
        self._steps += 1

    def stop(self, steady: bool) -> None:
        """Close the open span, if there is one."""
        if self._start is not None:
            self.spans.append(Span(self._start, self._mark(), self._images, self._steps, steady))
        self._start, self._images, self._steps = None, 0, 0

    def split(self, steady: bool) -> None:
        """Close the open span and open the next one at the same moment."""
        if self.running:
            self.stop(steady)
            self._start = self.spans[-1].end

    def seconds(self, spans: list[Span]) -> float:
        """Return the length of ``spans`` together; on CUDA this waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return sum(_seconds(span) for span in spans)

    def throughput(self) -> float:
        """Return images a second over the steady spans (of a run of warm-up steps only: all but the first step)."""
        trained = [span for span in self.spans if span.steps]
        steady = [span for span in trained if span.steady] or trained[1:] or trained
        seconds = self.seconds(steady)
        return sum(span.images for span in steady) / seconds if seconds > 0 else float("nan")

    def _mark(self) -> Mark:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        if self.device.type == "mps":
            torch.mps.synchronize()  # no events there; marks are few, so that waiting costs little
        return time.perf_counter()


def _seconds(span: Span) -> float:
    if isinstance(span.start, float) and isinstance(span.end, float):
        return span.end - span.start
    return span.start.elapsed_time(span.end) / 1000  # type: ignore[union-attr, arg-type]
