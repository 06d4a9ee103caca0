"""Published tables as tidy rows, by a small mapping file.

where: [dataset=rpj]                 # rows that are read
unpivot: {columns: [cosine, const], name: schedule, value: acc1}
columns:                             # tidy name: a column, or a column times a number
  samples_seen: tokens
  flops_per_sample: {column: gflops_per_sample, times: 3e9}
products: {model_flops: [flops_per_sample, samples_seen]}
constants: {data: datacomp}
"""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from clip_lightning.errors import UserError
from clip_lightning.formatting import listed
from clip_lightning.scaling.table import of_table, read_table, select

_FOLDER = Path(__file__).parent / "mappings"
_KEYS = {"source", "where", "unpivot", "columns", "products", "constants"}


def carried() -> list[str]:
    """Names of the mappings that the package has."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read(path: Path, mapping: str) -> pd.DataFrame:
    """A published table by its mapping.

    Args: mapping: a file, or the name of a carried one.
    Raises: UserError: the mapping or the table does not fit.
    """
    rules = load(mapping)
    table = read_table(path)
    if rules.get("where"):
        table = select(table, rules["where"])
    if unpivot := rules.get("unpivot"):
        for name in unpivot["columns"]:
            of_table(table, name)
        rest = [name for name in table.columns if name not in unpivot["columns"]]
        table = table.melt(rest, unpivot["columns"], unpivot["name"], unpivot["value"]).dropna(
            subset=[unpivot["value"]]
        )
    found = {}
    for name, rule in rules["columns"].items():
        column, times = (rule["column"], float(rule.get("times", 1))) if isinstance(rule, dict) else (rule, None)
        values = of_table(table, column)
        found[name] = values if times is None else pd.to_numeric(values, errors="coerce") * times
    made = pd.DataFrame(found)
    for name, factors in rules.get("products", {}).items():
        made[name] = made[[str(factor) for factor in factors if not _is_number(factor)]].astype(float).prod(axis=1)
        for factor in factors:
            made[name] *= float(factor) if _is_number(factor) else 1.0
    for name, value in rules.get("constants", {}).items():
        made[name] = value
    return made


def load(mapping: str) -> dict[str, Any]:
    """The rules of a mapping. Raises: UserError: it is missing, or has unknown keys."""
    path = _FOLDER / f"{mapping}.yaml" if mapping in carried() else Path(mapping)
    if not path.exists():
        raise UserError(f"--mapping {mapping}: there is no such file; write a YAML file, or one of {listed(carried())}")
    rules = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(rules, dict) or "columns" not in rules or not set(rules) <= _KEYS:
        wrong = listed(sorted(set(rules) - _KEYS)) if isinstance(rules, dict) else "no keys"
        raise UserError(f"{path}: a mapping has columns and may have {listed(sorted(_KEYS))}; this has {wrong}")
    return rules


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
