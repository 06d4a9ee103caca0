"""The page on notebooks: its code runs as it is written."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"


@pytest.mark.ci
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), found)
    features = found["images"]
    assert features.shape[0] == 1  # type: ignore[attr-defined]
    assert float(features.norm()) == pytest.approx(1.0, abs=1e-5)  # type: ignore[attr-defined]
