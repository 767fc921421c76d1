"""Ctrl-C, a closed terminal and `kill` all end a program the same way: by its own cleaning up."""
import contextlib
import signal

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible():
    """Turns the first such signal into KeyboardInterrupt and ignores the ones after it."""
    def interrupted(number, _frame):
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    before = {each: signal.signal(each, interrupted) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
