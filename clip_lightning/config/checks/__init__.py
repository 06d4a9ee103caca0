"""Whether the keys of a config agree with each other and with the disk: one sentence for each problem, without torch.

A sentence names key, value, rule and fix. What needs the data, the towers or the hub is checked by the preflight.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_lightning.config import identity, keys, phases
from clip_lightning.config.checks import cluster, data, evaluation, lengths, model, optimizer, paths, ranges, trainer
from clip_lightning.config.keys import did_you_mean, near
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.targets import target_problem


def check(config: Config | EvaluateConfig) -> list[str]:
    """Every problem of a typed and resolved config, one sentence each; an empty list where there is none."""
    wrong = dict(ranges.problems(config))
    problems = [*wrong.values(), *_targets(config), *cluster.problems(config)]
    problems += evaluation.problems(config)
    if isinstance(config, EvaluateConfig):
        return [*problems, *_run_folder(config)]
    problems += [*model.problems(config), *_names(config), *data.problems(config.data), *paths.problems(config)]
    problems += [*_allowed(config.allow_changed), *phases.problems(config), *optimizer.problems(config)]
    problems += [*trainer.problems(config.trainer), *_objects({"callbacks": config.callbacks, "logger": config.logger})]
    if not any(key.startswith(("compute.", "cluster.")) for key in wrong):
        problems += lengths.problems(config)
    return problems


def _targets(config: Config | EvaluateConfig) -> Iterator[str]:
    """Whether the packages of the user's own builders can be found; their code is not run yet."""
    schema: type = type(config)
    for key in keys.table(schema):
        if key.endswith("._target_") and (problem := target_problem(ranges.get(config, key), key)):
            yield problem


def _objects(groups: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Whether each named callback and logger has an import path whose package can be found; null switches one off."""
    for group, named in groups.items():
        for name, given in named.items():
            key = f"{group}.{name}"
            if given is not None and not (isinstance(given, dict) and isinstance(given.get("_target_"), str)):
                yield f"{key} needs {key}._target_, the import path of its class"
            elif given is not None and (problem := target_problem(given["_target_"], f"{key}._target_")):
                yield problem


def _run_folder(config: EvaluateConfig) -> Iterator[str]:
    if config.run is None or config.pretrained is not None:
        if config.run is not None:
            yield f"run={config.run} and pretrained={config.pretrained} are two models; write one of them"
        elif config.pretrained is None:
            yield (
                "run is not set: a run is a directory that train.py made, with config.yaml and checkpoints; "
                "write run=runs/latest for the newest one, or pretrained=SOURCE for another library's model"
            )
        return
    run = Path(config.run)
    if not (run / "config.yaml").is_file():
        runs = [path.parent.name for path in sorted(run.parent.glob("*/config.yaml"))]
        yield f"run={config.run} is not a run's directory: it has no config.yaml{did_you_mean(near(run.name, runs))}"


def _names(config: Config) -> Iterator[str]:
    names = {"model": identity.model_name(config), "data": config.data.name, "compute": config.compute.name}
    for group, name in names.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            yield f"{group}.name={name} names the run's directory; use letters, digits, and . _ + - only"


def _allowed(names: list[str]) -> Iterator[str]:
    """What may change within a run is data, or a key."""
    known = ["data", *keys.table(Config)]
    for name in names:
        if name != "data" and not keys.owner(Config, name):
            near = keys.did_you_mean(keys.near(name, known))
            yield f"allow_changed: there is no key {name}{near}; write data, or a key's name"
