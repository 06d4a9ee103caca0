"""A cached index of a folder of runs, `.runs.sqlite` in it: what each run's files said when they were last read.

It checks itself at every use: a run's entry holds the time and size of the files that it was read from, and is read
again when one of them has changed; entries of folders that are gone are removed. Deleting the file costs one reading
of all runs. Where the folder takes no file, the index lives in memory.
"""

import json
import math
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_lightning.errors import UserError
from clip_lightning.run_folders import CONFIG, STATUS, candidates

NAME, MEMORY = ".runs.sqlite", ":memory:"
# Raise it when `facts_of` gives other facts of the same files.
VERSION = 2
# The files that facts are read from; the config comes first, since it makes a folder the directory of a run.
FILES = (CONFIG, STATUS, "metrics.jsonl", "summary.json", "data.json")
# Config keys have a dot. They are most of the text, so a column of their own is read for conditions on them alone.
_TABLE = "CREATE TABLE IF NOT EXISTS runs (name TEXT PRIMARY KEY, stamp TEXT, facts TEXT, config TEXT)"
_SLOW = 200  # runs that are read between two commits; with as many or more to read, a line says what takes so long


class Index:
    """The runs of one folder, up to date when this object has been made.

    Attributes:
        num_read: how many runs had to be read again.
    """

    def __init__(self, folder: Path, read: Callable[[Path], dict[str, Any]] | None = None) -> None:
        """Reads what has changed.

        Args: read: gives the facts of a run's directory; None: `facts.facts_of`.
        Raises: UserError: there is no such folder.
        """
        if not folder.is_dir():
            raise UserError(f"--runs {folder}: there is no such folder; name the folder of your runs")
        self.folder = folder
        self._connection = _open(folder / NAME)
        try:
            self.num_read = self._refresh(read)
        except sqlite3.OperationalError:  # another user's file, or one that another process holds for long
            self._connection = _open(Path(MEMORY))
            self.num_read = self._refresh(read)

    def keys(self) -> list[str]:
        """Every key that any run has."""
        each = (f"SELECT key FROM runs, json_each(runs.{column})" for column in ("facts", "config"))
        return sorted(key for (key,) in self._connection.execute(" UNION ".join(each)))

    def select(self, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        """One row per run, by name: these keys, `None` where a run lacks one.

        Raises: UserError: no run has a key; it proposes near ones.
        """
        columns = ", ".join(f"json_extract({_column(key)}, ?)" for key in keys)
        rows = self._connection.execute(
            f"SELECT {columns or 'NULL'} FROM runs ORDER BY name",
            [f'$."{_known_characters(key)}"' for key in keys],
        ).fetchall()
        for place, key in enumerate(keys):
            if rows and all(row[place] is None for row in rows):
                self._check(key)
        return (dict(zip(keys, row, strict=True)) for row in rows)

    def facts(self) -> list[dict[str, Any]]:
        """Everything of all runs."""
        rows = self._connection.execute("SELECT facts, config FROM runs ORDER BY name")
        return [json.loads(facts) | json.loads(config) for facts, config in rows]

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM runs").fetchone()[0])

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def _check(self, key: str) -> None:
        from clip_lightning.config.keys import did_you_mean, near  # imports the schema

        if key not in (keys := self.keys()):
            raise UserError(
                f"no run in {self.folder} has {key}{did_you_mean(near(key, keys))}; `show RUN` lists what a run has"
            )

    def _refresh(self, read: Callable[[Path], dict[str, Any]] | None) -> int:
        found = dict(_stamps(self.folder))
        known = dict(self._connection.execute("SELECT name, stamp FROM runs"))
        gone = [(name,) for name in known.keys() - found.keys()]
        stale = [name for name, stamp in found.items() if known.get(name) != stamp]
        if not (gone or stale):
            return 0
        read = read or _read
        if len(stale) >= _SLOW:
            print(f"reading {len(stale):,} runs of {self.folder}; later calls read what has changed", file=sys.stderr)
        with self._connection:
            self._connection.executemany("DELETE FROM runs WHERE name = ?", gone)
        for start in range(0, len(stale), _SLOW):
            # The stamp is from before the reading: what is written meanwhile makes the entry stale.
            rows = [(name, found[name], *_texts(read(self.folder / name))) for name in stale[start : start + _SLOW]]
            with self._connection:  # a reading that is interrupted continues after these
                self._connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", rows)
        return len(stale)


def _read(run: Path) -> dict[str, Any]:
    from clip_lightning.runs.facts import facts_of  # imports pandas

    return facts_of(run)


def _open(path: Path) -> sqlite3.Connection:
    """The index, empty where it was made by another version or is damaged; in memory where it cannot be opened."""
    for attempt in (str(path), str(path), MEMORY):
        try:
            connection = sqlite3.connect(attempt, timeout=10)
            if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                connection.execute("DROP TABLE IF EXISTS runs")
                connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(_TABLE)
            connection.execute("SELECT name, stamp, facts, config FROM runs LIMIT 1").fetchone()
            return connection
        except sqlite3.OperationalError:  # a folder that takes no file, or a file system without locks
            continue
        except sqlite3.DatabaseError:  # not a database
            path.unlink(missing_ok=True)
    raise AssertionError("a database in memory can always be opened")


def _stamps(folder: Path) -> Iterator[tuple[str, str]]:
    """Each run's name, and the times and sizes of its files."""
    stat, base = os.stat, f"{folder}/"
    for name in candidates(folder):
        parts: list[str] = []
        for file in FILES:
            try:
                state = stat(f"{base}{name}/{file}")
            except OSError:
                if not parts:
                    break
                parts.append("-")
            else:
                parts.append(f"{state.st_mtime_ns}:{state.st_size}")
        if parts:
            yield name, " ".join(parts)


def _column(key: str) -> str:
    return "config" if "." in key else "facts"


def _texts(facts: dict[str, Any]) -> list[str]:
    """The two columns as JSON, which has no NaN and infinity: they are written by their names."""
    parts: dict[str, dict[str, Any]] = {"facts": {}, "config": {}}
    for key, value in facts.items():
        is_finite = not isinstance(value, float) or math.isfinite(value)
        parts[_column(key)][key] = value if is_finite else str(value)
    return [json.dumps(part, default=str) for part in parts.values()]


def _known_characters(key: str) -> str:
    """A key without what would end the quoted part of a path of SQLite's JSON functions."""
    if '"' in key:
        raise UserError(f"{key} is no key of a run: it has a quotation mark")
    return key
