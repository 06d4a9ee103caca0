"""The command that shows the table of a sweep: `python -m clip_lightning.run.sweep status DIR`."""

from clip_lightning.errors import run_command
from clip_lightning.run.sweep.table import main

run_command(main)
