"""The report of a run, `report.html`, written at its end beside the figures."""

import sys
from pathlib import Path

from clip_lightning.report.page import FILE, write


def write_report(path: Path) -> None:
    """Writes it into a run's directory; a failure costs one warning, since the numbers are on the disk already."""
    try:
        write([path], path / FILE, has_ended=True)
    except Exception as error:  # whatever it is, the run has succeeded
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
        repeat = f"python -m clip_lightning.report {path} repeats it"
        print(f"warning: {path / FILE} was not written ({first_line}); {repeat}", file=sys.stderr)
