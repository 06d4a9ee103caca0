"""Comparisons between the fields of a config."""

from clip_lightning.config.schema import Config, EvaluateConfig


def check(config: Config | EvaluateConfig) -> list[str]:
    """Every problem, one sentence each."""
    return []
