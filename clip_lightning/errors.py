"""Leaf: the one family of errors that a user can mend. Everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """One or more problems that the user can mend, each one sentence: key, value, rule, mend.

    The entry files print the sentences and leave with exit code 2; `HYDRA_FULL_ERROR=1` keeps the traceback.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))


class DataError(UserError):
    """The data cannot be trained on or evaluated: missing, empty, damaged beyond the allowed share."""


class CheckpointError(UserError):
    """No usable checkpoint where one was asked for."""


class NodeError(UserError):
    """A machine of the run is not fit for it: the sentence names it."""
