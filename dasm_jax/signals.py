"""SIGTERM and Ctrl-C: the first one is noted, the second one ends the process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Noted:
    """The signal that asks the run to end, if there was one."""

    signal: int | None = None


@contextmanager
def noted() -> Iterator[Noted]:
    """Note the first signal, and leave the next one to the operating system.

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
            signal.signal(each, signal.SIG_IGN if ours_above else signal.SIG_DFL)
        if ours_above:
            return  # that one says it
        # A handler must not print: it may have interrupted a print.
        name = signal.Signals(number).name
        text = f"{name}: stopping at the next checkpoint; a second one stops at once\n"
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
