"""End in good order on SIGTERM, SIGHUP and Ctrl-C: what is finished is kept and reported."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received: list[int] = []


class Stopped(BaseException):
    """A signal asks the study to end; no ``Exception``, so that no trial takes it for its own failure.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def exit_code(self) -> int:
        """What a shell shows for a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


@contextmanager
def stop_signals() -> Iterator[None]:
    """Let the signals raise `Stopped` inside; Ctrl-C does the same, also where Lightning makes it `SystemExit`.

    Outside of the main thread nothing is changed, as Python handles signals there only. An ignored signal stays
    ignored (``nohup``).
    """
    _received.clear()
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in NAMES]
        earlier = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
        for number in earlier:
            signal.signal(number, _stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def check_stopped() -> None:
    """Raise `Stopped` for a signal whose exception was lost (Python drops those that rise in a destructor)."""
    if _received:
        raise Stopped(_received[0])


def _stop(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise Stopped(number)
