"""Runs `python -m MODULE` in the process of a test, which has imported torch already."""

import runpy
import sys
from collections.abc import Sequence

import pytest


def exit_code(module: str, words: Sequence[str]) -> int:
    """Runs `python -m module words` and returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    return int(ended.value.code or 0)
