"""What a run that fails writes: its reason into `status.json`, and the traceback of an unexpected error."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_lightning.errors import UserError
from clip_lightning.reliability.status import write_status
from clip_lightning.run.directory import FAILURE


@contextmanager
def noted(path: Path, rank: int) -> Iterator[None]:
    """Writes into the run's directory why its body failed, and re-raises; only the first rank that fails writes.

    Args:
        path: the run's directory.
        rank: of this process.
    """
    try:
        yield
    except UserError as error:
        with suppress(OSError):
            write_status(path, "failed", "; ".join(error.problems))
        raise
    except Exception as error:
        first_line = (str(error).strip() or "no message").split("\n")[0]
        with suppress(OSError):  # a full disk must not hide the cause
            with suppress(FileExistsError), (path / FAILURE).open("x", encoding="utf-8") as stream:
                stream.write(f"rank {rank}\n{''.join(traceback.format_exception(error))}")
            write_status(
                path, "failed", f"{type(error).__name__} on rank {rank}: {first_line} (traceback in {FAILURE})"
            )
        raise
