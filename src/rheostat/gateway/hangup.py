"""SIGHUP, which ends a process that has no handler for it; here alone, as it is needed before anything is loaded."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def hangups_taken() -> Iterator[None]:
    """SIGHUP does nothing until `at_hangup` says what; afterwards as before."""
    before = at_hangup(lambda: None)  # not SIG_IGN, which processes that are started meanwhile would keep
    try:
        yield
    finally:
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, before)


def at_hangup(act: Callable[[], None]) -> Any:
    """Gives what handled the signal until now."""
    return signal.signal(signal.SIGHUP, lambda *_: act()) if hasattr(signal, "SIGHUP") else None
