"""The page of a report: facts, tables and the places of the charts, in one file with everything it needs."""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from clip_lightning import __version__
from clip_lightning.formatting import clock, count, percent, setting, with_interval
from clip_lightning.records import EMA
from clip_lightning.reliability.atomic_files import write_atomically
from clip_lightning.report.charts import ZERO_SHOT, Axes, Section, sections, tasks_of
from clip_lightning.report.read import RunFiles, differences, read_runs
from clip_lightning.score_names import task_name

FILE = "report.html"
# Figures of a run that the page draws itself; and what the others show.
_REDRAWN = ("loss", "zero_shot")
_SHOWN = {
    "predictions": "Single images with their most probable classes",
    "retrieval": "Held-out pairs whose own caption is ranked best and worst for their image, with the captions that "
    "the model finds most probable",
}
# What a table of retrieval has; the first is what several runs are compared by.
_RECALLS = {"recall_at_1": "recall at 1, both ways"} | {
    f"{way}_to_{other}_recall_at_{depth}": f"{way} to {other} at {depth}"
    for way, other in (("image", "text"), ("text", "image"))
    for depth in (1, 5, 10)
}
_DATA = {"num_samples": "training pairs"}
_MOST_BYTES = 4 * 2**20  # of an embedded picture


def write(paths: Sequence[Path], out: Path, *, has_ended: bool = False) -> Path:
    """Writes the page of one run, or of several beside each other.

    Args: has_ended: the runs have ended, although this process still holds their locks.
    Raises: UserError: a folder holds no run.
    """
    write_atomically(out, page(read_runs(paths, has_ended=has_ended)))
    return out


def page(runs: Sequence[RunFiles]) -> str:
    """The page."""
    found, texts = sections(runs), files("clip_lightning.report")
    charts = [chart for section in found for chart in section.charts]
    content = {"runs": [run.label for run in runs], "charts": [asdict(chart) for chart in charts]}
    return Template(texts.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(" | ".join(run.label for run in runs)),
        heading=escape(runs[0].label if len(runs) == 1 else f"{len(runs)} runs compared"),
        lead=_lead(runs),
        style=texts.joinpath("report.css").read_text(encoding="utf-8"),
        body="\n".join(_body(runs, found)),
        version=escape(__version__),
        charts=json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        plotly=_plotly() if charts else "",
        script=texts.joinpath("report.js").read_text(encoding="utf-8"),
    )


@cache
def _plotly() -> str:
    """plotly.js of the installed package, gzip and base64: 2 MB of a page instead of 5."""
    script = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 3, mtime=0)).decode()


def _lead(runs: Sequence[RunFiles]) -> str:
    if len(runs) > 1:
        return "Differences of their configs first, then their results over samples, FLOPs or hours."
    run = runs[0]
    seen, total = run.status.get("samples_seen", 0), run.status.get("total_samples")
    of = f" of {count(total)}" if total else ""
    because = f" ({escape(run.reason)})" if run.reason else ""
    return f"{escape(run.state)}{because}, {count(seen)}{of} samples, {escape(_time(run.status.get('time')))}"


def _time(text: str | None) -> str:
    """A time of the run's files, to the second in UTC, as people read it."""
    return (text or "").replace("T", " ").replace("+00:00", " UTC")


def _body(runs: Sequence[RunFiles], found: Sequence[Section]) -> Iterable[str]:
    if len(runs) > 1:
        yield from _section("Differences of config", _differences(runs))
    yield from _section("Result" if len(runs) == 1 else "Results", _facts_table(runs))
    newest = "Newest evaluation, 95 % intervals in brackets"
    for title, names in (("Zero-shot scores", ZERO_SHOT), ("Retrieval scores", _RECALLS)):
        if table := _score_table(runs, names, newest):
            yield from _section(title, table)
    yield from _charts(runs, found)
    for run in runs:
        if panels := _panels(run):
            yield from _section(_of("Examples", run, runs), panels)
    yield from _section("Starts and faults", "".join(_starts(run, runs) for run in runs))
    for run in runs:
        yield from _section(_of("What was trained", run, runs), _identity(run))


def _section(title: str, content: str) -> Iterable[str]:
    yield f"<section><h2>{escape(title)}</h2>{content}</section>"


def _of(title: str, run: RunFiles, runs: Sequence[RunFiles]) -> str:
    return title if len(runs) == 1 else f"{title}: {run.label}"


def _differences(runs: Sequence[RunFiles]) -> str:
    changed = differences(runs)
    if not changed:
        return "<p>All config keys are equal.</p>"
    rows = [(key, *(setting(value) for value in values)) for key, values in changed]
    return _table(["key", *(run.label for run in runs)], rows, "Config keys in which the runs differ")


def _facts_table(runs: Sequence[RunFiles]) -> str:
    """The numbers of each run: what it reached, and what it cost."""
    facts = [_facts(run) for run in runs]
    if len(runs) == 1:
        return _definitions(facts[0])
    names = dict.fromkeys(name for one in facts for name in one)
    rows = [(name, *(one.get(name, "-") for one in facts)) for name in names]
    return _table(["", *(run.label for run in runs)], rows, "Results and costs")


def _facts(run: RunFiles) -> dict[str, str]:
    cluster = run.config["cluster"]
    devices = cluster["nodes"] * cluster["devices"]
    seconds = _last(run, "seconds")
    flops, mfu = Axes.of(run).total_flops, run.training("mfu").value
    speed, wait, memory = (run.training(what).value for what in ("samples_per_second", "data_wait", "memory_gib"))
    loss = _last(run, "loss")
    parameters = run.summary.get("parameters")
    facts: dict[str, str | None] = {
        "state": run.state + (f": {run.reason}" if run.reason else ""),
        "training loss": None if loss is None else f"{loss:.4g}",
        "validation loss": _validation_loss(run),
        "samples": f"{run.status.get('samples_seen', 0):,} of {run.status.get('total_samples') or 0:,}",
        "parameters": count(parameters) if parameters else None,
        "time": None if seconds is None else clock(seconds),
        "device hours": None
        if seconds is None
        else f"{seconds * devices / 3600:.3g} on {devices} {'process' if devices == 1 else 'processes'}",
        "training FLOPs": f"{flops:.3g}" if flops else None,
        "MFU": percent(mfu.median()) if len(mfu) else "not known: no peak of this device",
        "throughput": f"{count(speed.median())} samples/s (median)" if len(speed) else None,
        "data wait": f"{percent(wait.mean())} of training time" if len(wait) else None,
        "peak memory": f"{memory.max():.2f} GiB per process" if len(memory) else None,
        "restarts": str(max(0, len(run.starts) - 1)),
        "skipped steps": f"{_last(run, 'skipped_steps') or 0:.0f}",
        "rollbacks": str(len(run.training("skip_windows"))),
        "bad samples": ", ".join(f"{number} {cause}" for cause, number in run.bad_samples.items()) or "none",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _validation_loss(run: RunFiles) -> str | None:
    rows = run.records[run.records.what.str.startswith("val_loss_") & (run.records.weights == "")]
    if not len(rows):
        return None
    newest = rows.loc[rows.samples_seen.idxmax()]
    return f"{newest.value:.4g} with {int(newest.what.removeprefix('val_loss_')):,} candidates"


def _last(run: RunFiles, what: str) -> float | None:
    rows = run.training(what)
    return float(rows.value.iloc[-1]) if len(rows) else None


def _score_table(runs: Sequence[RunFiles], names: Mapping[str, str], caption: str) -> str:
    """The newest scores of every task; of one run all of them, of several the first one beside each other.

    Args: names: quantity -> its name in the table.
    """
    tasks = tasks_of(runs, names)
    if not tasks:
        return ""
    if len(runs) > 1:
        lines = [(task, names[what], *(_score(run, task, what) for run in runs)) for task, what in tasks.items()]
        return _table(["task", "score", *(run.label for run in runs)], lines, caption, "scores")
    run, found = runs[0], dict[str, dict[str, pd.Series]]()
    for weights in ("", EMA):
        for task in tasks:
            newest = {what: rows.iloc[-1] for what in names if len(rows := run.measured(task, what, weights))}
            if newest:
                found[task_name(task, weights)] = newest
    columns = [what for what in names if any(what in newest for newest in found.values())]
    lines = []
    for name, newest in found.items():
        first = next(iter(newest.values()))
        n, chance = (None if pd.isna(value) else value for value in (first.n, first.chance))
        scores = [_interval(newest[what]) if what in newest else "-" for what in columns]
        about = ("-" if n is None else f"{int(n):,}", "-" if chance is None else percent(chance))
        lines.append((name, *scores, *about, count(first.samples_seen)))
    return _table(["task", *(names[what] for what in columns), "n", "chance", "samples"], lines, caption, "scores")


def _score(run: RunFiles, task: str, what: str) -> str:
    rows = run.measured(task, what)
    return _interval(rows.iloc[-1]) if len(rows) else "-"


def _interval(row: pd.Series) -> str:
    low, high = (None if pd.isna(end) else float(end) for end in (row.low, row.high))
    return with_interval(float(row.value), low, high)


def _charts(runs: Sequence[RunFiles], found: Sequence[Section]) -> Iterable[str]:
    if found:
        yield _controls(runs)
    number = 0
    for section in found:
        figures = []
        for chart in section.charts:
            name = f"chart{number}"
            described = escape(f"{chart.title}, {chart.unit}. Last values: {chart.latest()}", quote=True)
            figures.append(
                f'<figure aria-labelledby="{name}"><h3 id="{name}">{escape(chart.title)}</h3>'
                f'<div class="chart" data-chart="{number}" role="img" aria-label="{described}"></div>'
                f'<figcaption><p class="latest">{escape(chart.latest())}</p><p class="about">{escape(chart.about)}</p>'
                "</figcaption></figure>"
            )
            number += 1
        yield from _section(section.title, f'<div class="charts">{"".join(figures)}</div>')


def _controls(runs: Sequence[RunFiles]) -> str:
    """The axis of all charts, and which runs they show."""
    axes = "".join(
        f'<label><input type="radio" name="axis" value="{value}"{" checked" * (value == "samples")}> {name}</label>'
        for value, name in (("samples", "samples"), ("flops", "FLOPs"), ("hours", "hours"))
    )
    shown = f'<fieldset class="controls" role="radiogroup" aria-label="Horizontal axis of the charts">over {axes}'
    if len(runs) == 1:
        return f"{shown}</fieldset>"
    toggles = "".join(
        f'<label><input type="checkbox" name="run" value="{k}" checked> <span class="swatch" data-run="{k}"></span>'
        f"{escape(run.label)}</label>"
        for k, run in enumerate(runs)
    )
    return f"{shown}<span> </span>{toggles}</fieldset>"


def _panels(run: RunFiles) -> str:
    """The pictures in `figures/` that the page does not draw itself."""
    pictures = [path for path in sorted((run.path / "figures").glob("*.png")) if path.stem not in _REDRAWN]
    shown = []
    for path in pictures:
        name = path.stem.replace("_", " ").capitalize()
        about = _SHOWN.get(path.stem, "")
        shown.append(f'<h3>{escape(name)}</h3><p class="about">{escape(about)}</p>')
        if path.stat().st_size > _MOST_BYTES:
            shown.append(f"<p>{escape(str(path))} is too large for this page.</p>")
            continue
        data = base64.b64encode(path.read_bytes()).decode()
        described = escape(": ".join(filter(None, (name, about))), quote=True)
        picture = f'<img class="panels" alt="{described}" src="data:image/png;base64,{data}">'
        shown.append(f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{picture}</div>')
    return "".join(shown)


def _starts(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    """Every start, what it changed, and what was skipped."""
    rows = [
        (
            str(k),
            _time(start.get("time")),
            str(start.get("host", "")),
            str(start.get("commit", "")),
            "; ".join(start.get("changed", [])) or "-",
        )
        for k, start in enumerate(run.starts, 1)
    ]
    parts = [_table(["start", "time", "host", "code", "settings that differ"], rows, _of("Starts", run, runs))]
    windows = run.training("skip_windows")
    if len(windows):
        skipped = [
            (f"{int(row.samples_seen):,}", f"{int(row.value):,}", f"{int(row.n):,}") for row in windows.itertuples()
        ]
        parts.append(_table(["decided at samples", "from position", "samples"], skipped, "Data left out by rollbacks"))
    if run.divergences:
        lines = [
            (str(line.get("problem", "")), ", ".join(f"{step['samples_seen']:,}" for step in line.get("steps", [])))
            for line in run.divergences
        ]
        parts.append(_table(["divergence", "steps at samples"], lines, "Divergences (ids in divergence.jsonl)"))
    return "".join(parts)


def _identity(run: RunFiles) -> str:
    """Model card, hashes, data, code, versions and config."""
    data = {
        _DATA.get(key, f"data {key}"): f"{value:,}" if isinstance(value, int) else str(value)
        for key, value in run.data.items()
    }
    code = run.code[0] if run.code else "not recorded"
    facts = {"science hash": run.science, **data, "code": code, "directory": str(run.path)}
    parts = [_definitions(run.card), _definitions(facts), _details("versions", _tree(run.versions))]
    if run.code[1:]:
        lines = "".join(f'<div class="leaf"><code>{escape(line)}</code></div>' for line in run.code[1:])
        parts.append(_details("files that differ from the commit", lines))
    return "".join([*parts, _details("config", _tree(run.config))])


def _tree(tree: Mapping[str, Any]) -> str:
    """A config as nested parts that open and close."""
    return "".join(
        _details(str(key), _tree(value)) if isinstance(value, dict) and value else _leaf(str(key), setting(value))
        for key, value in tree.items()
    )


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _leaf(key: str, value: str) -> str:
    return f'<div class="leaf"><code>{escape(key)}: {escape(value)}</code></div>'


def _definitions(facts: Mapping[str, str]) -> str:
    pairs = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, kind: str = "") -> str:
    first = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    table = f"<caption>{escape(caption)}</caption><thead><tr>{first}</tr></thead><tbody>{lines}</tbody>"
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}">'
    return f'{region}<table class="{kind}">{table}</table></div>'
