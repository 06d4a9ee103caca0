"""Processes that must not outlive the one that started them."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Asks the kernel to send signal `number` to this process when its parent ends, however that happens.

    Called first thing in a child. The kernel watches the parent's thread that forked, which is its main thread here.

    Args: parent: process id that the parent had when it forked; where it is gone already, the signal comes at once.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def begin_worker(parent: int) -> None:
    """What a process of the data loader does first: ends with its parent, and leaves the job's signals to it.

    A scheduler sends its signals to all processes of a job. The main process acts on them, and needs its batches until
    then. The first SIGTERM is ignored as well; a second one, from a main process that ends, ends this process.
    """
    end_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
