"""One piece of work at a time in a thread of its own, whose result and error are asked for later."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class Background(Generic[_Result]):
    """Work that has begun.

    The thread does not hold a process that leaves: what it leaves half-done must be no harm.

    Attributes:
        seconds: that the work took, once it is done.
    """

    def __init__(self, work: Callable[[], _Result]) -> None:
        self.seconds = 0.0
        self._result: list[_Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether `result` would not wait."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits, but not for ever."""
        self._thread.join(seconds)

    def result(self) -> _Result:
        """Waits for the work; raises what it raised."""
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
