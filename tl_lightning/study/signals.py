"""End in good order on SIGTERM, SIGHUP and Ctrl-C: what is finished is kept and reported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
GRACE_SECONDS = 3.0  # to reach a place where stopping is safe
_received: list[int] = []
_timers: list[threading.Timer] = []
_handlers: dict[int, Callable[[int, FrameType | None], None]] = {}


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
    """Let the signals end what runs inside with `Stopped`.

    A signal is noted, and `check_stopped` raises at the next place where stopping is safe, such as between two
    batches. A second signal, or three seconds, raise wherever the program is: Python would drop an exception that
    rises in a destructor, so this is tried again until it works. Outside of the main thread nothing is changed, as
    Python handles signals there only; an ignored signal stays ignored (``nohup``).
    """
    _received.clear()
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in NAMES]
        earlier = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
        for number in earlier:
            signal.signal(number, _note)
            _handlers[number] = _note
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None
    finally:
        settle()
        _handlers.clear()
        for number, handler in earlier.items():
            signal.signal(number, handler)


def take_back() -> None:
    """Put the handlers back that Lightning has wrapped: its own tells other processes of SIGTERM and waits for them."""
    for number, handler in _handlers.items():
        signal.signal(number, handler)


def check_stopped() -> None:
    """Raise `Stopped` if a signal has come; call it where nothing is left half done."""
    if _received:
        settle()
        raise Stopped(_received[0])


def settle() -> None:
    """Let nothing more be raised for a signal that has come: the results are being written."""
    while _timers:
        _timers.pop().cancel()


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    timer = threading.Timer(GRACE_SECONDS, os.kill, (os.getpid(), number))
    timer.daemon = True
    _timers.append(timer)
    timer.start()
    if len(_received) > 1:
        raise Stopped(_received[0])
