"""SIGTERM, SIGHUP, Ctrl-C: the first is noted, a second one ends the process."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TOGETHER = 1.0  # s within which two signals are one request


class Noted:
    """The signal that asks the run to end, if there was one."""

    signal: int | None = None
    when: float = 0.0


@contextmanager
def noted() -> Iterator[Noted]:
    """Note the first signal, and leave the next one to the operating system.

    But for SIGHUP: a terminal that closes sends it more than once, and after the first
    signal it does nothing. Some services send it along with SIGTERM: two signals that
    come together are one request.

    In a process that another one of ours started the next one does nothing, from then
    on: it is the same, which went to both, and which the other one passed on. Signals
    that the process was told to ignore stay ignored; outside the main thread, where
    Python handles none, nothing is noted.
    """
    found = Noted()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    ours_above = multiprocessing.parent_process() is not None

    def note(number: int, frame: Any) -> None:
        if found.signal is None:
            first(number)
        elif not ours_above and number != signal.SIGHUP:
            if time.monotonic() - found.when > TOGETHER:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            elif found.signal == signal.SIGHUP:
                found.signal = number

    def first(number: int) -> None:
        found.signal, found.when = number, time.monotonic()
        if ours_above:
            return  # that one says it
        if number != signal.SIGHUP:
            # At once even inside XLA, where no handler of Python's runs. Those of the
            # others stay: Python may be about to call them, and says so if it cannot.
            signal.signal(number, signal.SIG_DFL)
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
        done = ours_above and found.signal
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if done else handler)


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
