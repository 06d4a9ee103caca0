"""What the registry knows of a run: the row that `scaling collect` writes of it, its config keys, and its code.

Imported when a run is read, not when the index has it: reading records imports pandas.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clip_lightning.config.compose import read
from clip_lightning.config.frozen import tree
from clip_lightning.config.identity import flatten, science_hash
from clip_lightning.errors import UserError
from clip_lightning.formatting import setting
from clip_lightning.reliability.status import read_json
from clip_lightning.run_folders import CONFIG, PLACES
from clip_lightning.scaling.runs import row_from


def facts_of(run: Path) -> dict[str, Any]:
    """Key -> value: what `scaling collect` has in a row (model, data, imagenet/acc1, ...), and every dotted config key.

    A run whose files cannot be read has its name and the reason.
    """
    try:
        found = tree(run / CONFIG)
        config: Any = json.loads(json.dumps(found), object_hook=lambda part: SimpleNamespace(**part))
        row = row_from(run, config, _science(run), count_flops=False)
        time = read_json(run / "status.json").get("time")
    except (UserError, OSError, ValueError, TypeError, AttributeError) as error:
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
        return {"run": run.name, "state": "unreadable", "reason": first_line}
    git = run / "git.txt"
    code = git.read_text(encoding="utf-8").split("\n")[0] if git.exists() else None
    keys = {
        key: setting(value) if isinstance(value, list) else value
        for key, value in flatten(found).items()
        if key not in (*PLACES, *row)
    }
    return {**row, "time": time, "code": code, **keys}


def _science(run: Path) -> str:
    """The hash that every record of a run carries; of a run without records, computed."""
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        with metrics.open(encoding="utf-8") as lines:
            if (first := lines.readline()).endswith("\n"):
                return str(json.loads(first)["science"])
    return science_hash(read(run / CONFIG))
