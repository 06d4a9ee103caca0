"""Leaf: the one family of errors that a user can mend. Everything else is a bug and keeps its traceback."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

_BROKEN_PIPE, _INTERRUPTED = 141, 130  # 128 + SIGPIPE, 128 + SIGINT: what a shell reports


class UserError(Exception):
    """One or more problems that the user can mend, each one sentence: key, value, rule, mend.

    The entry files print the sentences and leave with `exit_code`; `HYDRA_FULL_ERROR=1` keeps the traceback.

    Attributes:
        exit_code: 2 for what the command got wrong, 1 for what data, checkpoints or machines have.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))


class AgreedError(UserError):
    """Every rank raises it at the same place, so that rank 0 alone needs to tell."""


class DataError(UserError):
    """The data cannot be trained on or evaluated: missing, empty, damaged beyond the allowed share."""

    exit_code = 1


class CheckpointError(UserError):
    """No usable checkpoint where one was asked for."""

    exit_code = 1


class AgreedCheckpointError(AgreedError, CheckpointError):
    """Checkpoints fail every rank alike."""


class NodeError(UserError):
    """A machine of the run, or a rank on it, is not fit for it: the sentence names it."""

    exit_code = 1


class AgreedNodeError(AgreedError, NodeError):
    """All ranks that are left know of it."""


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs the `main` of a `python -m` command and exits with the code that it returns.

    A `UserError` is printed without a traceback. A reader that has closed the pipe, as `| head` does, ends the command
    silently.
    """
    try:
        try:
            code = main() or 0
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at the exit goes nowhere
        code = _BROKEN_PIPE
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)
