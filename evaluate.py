"""Measures a run: `python evaluate.py run=runs/latest`; `python evaluate.py --help` shows what can be set."""

from collections.abc import Sequence

from clip_lightning.config import compose
from clip_lightning.config.schema import EvaluateConfig


def task(config: EvaluateConfig, arguments: Sequence[str]) -> int:
    """Evaluates; torch is imported only here, when the config is known to be right."""
    from clip_lightning.run.evaluate import evaluate

    return evaluate(config)


if __name__ == "__main__":
    compose.main("evaluate", task)
