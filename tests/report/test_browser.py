"""A real browser draws every chart of a page, without a message on its console."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clip_lightning.report.page import write
from tests.support.run_directories import write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def opened(page: Path, profile: Path, width: int) -> tuple[str, str]:
    """The document after its scripts, and what the browser printed. The window is as high as the page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --enable-logging=stderr"
    )
    command = [
        browser, *flags.split(), f"--user-data-dir={profile}", f"--window-size={width},16000",
        "--virtual-time-budget=20000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, done.stderr


@pytest.mark.ci
def test_a_browser_draws_every_chart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", "compute.learning_rate=0.003")]
    for name, width in (("desktop", 1280), ("phone", 500)):
        page = write(runs if name == "phone" else runs[:1], tmp_path / f"{name}.html")
        document, printed = opened(page, tmp_path / name, width)
        charts = len(re.findall(r'data-chart="\d+"', document))
        assert charts > 8
        assert len(re.findall(r'class="plot-container plotly"', document)) == charts
        assert "CONSOLE" not in printed, printed
