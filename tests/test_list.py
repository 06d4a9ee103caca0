"""`python -m clip_lightning.list`: every kind, a line about each option, options of one's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from clip_lightning import list as listing
from clip_lightning.errors import UserError


@pytest.mark.parametrize("kind", [kind for kind in listing.KINDS if kind not in ("tasks", "pretrained")])
def test_every_option_has_a_line_about_it(kind: str) -> None:
    found = listing.entries(kind)
    assert found
    assert not [name for name, line in found.items() if not line]


def test_names_of_a_part_and_of_ones_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "birds.yaml").write_text("# Photographs of birds.\nname: birds\n")
    assert listing.main(["data", "bird", "--config-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "birds  Photographs of birds.\n"
    assert listing.main(["pretrained", "ViT-B-32"]) == 0
    assert "open_clip:ViT-B-32/laion2b_s34b_b79k" in capsys.readouterr().out
    assert listing.main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert "handwritten_digits" in shown
    assert "fgvc_aircraft" in shown


@pytest.mark.slow
def test_the_summary_does_not_wait_for_torch() -> None:
    program = "import sys; from clip_lightning.list import main; main([]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["pretrained", "python", "-m", "clip_lightning.list", "pretrained"]


def test_a_part_that_no_name_contains_is_refused() -> None:
    with pytest.raises(UserError, match="no name among models contains 'zzz'"):
        listing.main(["models", "zzz"])
