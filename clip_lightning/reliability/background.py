"""One piece of work at a time in a thread of its own; its result or error is read later."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class Background(Generic[_Result]):
    """Work that runs in a thread.

    The thread is a daemon: a process that exits does not wait for it, so unfinished work must do no harm.

    Attributes:
        seconds: duration of the work once it is done.
    """

    def __init__(self, work: Callable[[], _Result]) -> None:
        self.seconds = 0.0
        self._result: list[_Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether `result` returns at once."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits for the work, at most so many seconds."""
        self._thread.join(seconds)

    def result(self) -> _Result:
        """Waits for the work and returns its result; raises the error it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self, work: Callable[[], _Result]) -> None:
        start = time.perf_counter()
        try:
            self._result.append(work())
        except BaseException as error:
            self._error = error
        self.seconds = time.perf_counter() - start
