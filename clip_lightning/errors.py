"""The one family of errors that a user can fix, and how commands end. Other exceptions are bugs and keep their
traceback.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

_BROKEN_PIPE, _INTERRUPTED = 141, 130  # 128 + SIGPIPE, 128 + SIGINT: what a shell reports


class UserError(Exception):
    """One or more problems that the user can fix, each one sentence: key, value, rule, fix.

    The entry files print the sentences and exit with `exit_code`; `HYDRA_FULL_ERROR=1` keeps the traceback.

    Attributes:
        exit_code: 2 for a mistake in the command, 1 for a fault of data, checkpoints or hardware.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))


class AgreedError(UserError):
    """Every rank raises it at the same place, so that only rank 0 needs to report it."""


class DataError(UserError):
    """The data cannot be trained on or evaluated: missing, empty, damaged beyond the allowed share."""

    exit_code = 1


class CheckpointError(UserError):
    """No usable checkpoint where one was requested."""

    exit_code = 1


class AgreedCheckpointError(AgreedError, CheckpointError):
    """A checkpoint error that every rank raises."""


class NodeError(UserError):
    """A node of the run, or a rank on it, cannot be used: the sentence names it."""

    exit_code = 1


class AgreedNodeError(AgreedError, NodeError):
    """A node error that every remaining rank raises."""


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs the `main` of a `python -m` command and exits with the code that it returns.

    A `UserError` is printed without a traceback.
    """
    with silent_broken_pipe():
        try:
            code = main() or 0
        except UserError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            code = _INTERRUPTED
        sys.exit(code)


@contextmanager
def silent_broken_pipe() -> Iterator[None]:
    """Exits without a traceback where the reader of the output has closed its pipe, as `| head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at the exit goes nowhere
        sys.exit(_BROKEN_PIPE)


def print_error(error: UserError) -> int:
    """Prints the sentences, inside a SLURM job with the node's name; returns the exit code."""
    node = os.environ.get("SLURMD_NODENAME")
    for problem in error.problems:
        print(f"{node}: {problem}" if node else problem, file=sys.stderr)
    return error.exit_code
