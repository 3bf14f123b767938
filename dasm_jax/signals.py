"""SIGTERM, SIGHUP, Ctrl-C: the first is noted, a second one ends the process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Noted:
    """The signal that asks the run to end, if there was one."""

    signal: int | None = None


@contextmanager
def noted() -> Iterator[Noted]:
    """Note the first signal, and leave the next one to the operating system.

    But for SIGHUP: a terminal that closes sends it more than once, and some services
    send it along with SIGTERM, so after the first signal it is ignored.

    A process that another one of ours started ignores the next one, from then on: it is
    the same, which went to both, and which the other one passed on. Signals that the
    process was told to ignore stay ignored; outside the main thread, where Python
    handles none, nothing is noted.
    """
    found = Noted()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    ours_above = multiprocessing.parent_process() is not None

    def note(number: int, frame: Any) -> None:
        found.signal = number
        for each in before:
            ignored = ours_above or each == signal.SIGHUP
            signal.signal(each, signal.SIG_IGN if ignored else signal.SIG_DFL)
        if ours_above:
            return  # that one says it
        # A handler must not print: it may have interrupted a print.
        name = signal.Signals(number).name
        again = "SIGTERM" if number == signal.SIGHUP else "a second one"
        text = f"{name}: stopping at the next checkpoint; {again} stops at once\n"
        # Whoever read it may be gone: Ctrl-C ends a pipe as a whole.
        with suppress(OSError):
            os.write(2, text.encode())

    before = {
        number: signal.getsignal(number)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, note)
    try:
        yield found
    finally:
        if not (ours_above and found.signal):
            for number, handler in before.items():
                signal.signal(number, handler)


def raise_again(found: Noted) -> None:
    """Let a signal that came after the last look do what it does outside.

    In a process that another one of ours started it is ignored: that one knows of it.
    """
    if found.signal is not None:
        signal.raise_signal(found.signal)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach before they ask for it.

    Until then they import, under a handler of Python's that ends with a traceback. They
    ask with ``release_interrupts``, and what came in the meantime comes then.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_interrupts() -> None:
    """End what ``interrupts_held`` began, in a process that was started inside."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
