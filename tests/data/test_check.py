"""The look before training: its numbers are right, its page is a picture, and mistakes are sentences."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_lightning.data import check, findings
from tests.support.small_data import jpeg, pairs, write_tar


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str]]:
    code = check.main(arguments)
    printed = capsys.readouterr()
    lines = [line.partition(" ") for line in (printed.out + printed.err).splitlines()]
    return code, {word: rest.strip() for word, _, rest in lines}


@pytest.mark.ci
@pytest.mark.slow  # runs the command that counts operations
def test_everything_about_the_data_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setattr(findings, "_SECONDS", 0.2)
    members = [*pairs(0, 60), ("cut.jpg", jpeg(7, 100, 100)[:-400]), ("cut.txt", b"damaged")]
    members += [("same.jpg", jpeg(3)), ("same.txt", b"picture number 3"), ("alone.jpg", jpeg(1))]
    write_tar(tmp_path / "0.tar", members)
    page = tmp_path / "page.png"
    settings = [f"data.path={tmp_path}", "data.validation.num_samples=0", "model=tiny", "compute=cpu_minutes"]
    settings = settings[1:]
    code, said = run(capsys, str(tmp_path), "--page", str(page), "--set", *settings)
    assert code == 0
    assert said["kind"] == f"{tmp_path} is read with data=webdataset"
    assert said["data"].startswith("62 samples in 1 shards: 62 to train on, 0 held out; fingerprint ")
    assert said["left"].startswith("out    missing caption: 1 ")
    assert said["looked"] == "at   62 samples; bad: truncated image: 1"
    assert said["images"].startswith("40 .. 40 .. 40 wide, 30 .. 30 .. 30 high in pixels")
    assert said["twice"] == "2 (3.3%) captions, 2 (3.3%) images"
    assert "1.00 captions an image" in said["captions"]
    assert said["speed"].endswith("cores of this node")
    assert "trains tiny on" in said["GPU"]
    assert findings.training_flops("no_such_model", root) is None
    picture = np.array(Image.open(page).convert("RGB"))
    assert picture.shape[:2] == (1300, 1600)
    assert picture.std() > 30


@pytest.mark.slow
def test_missing_data_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "--data", "cc12m", "--set", f"data.path={tmp_path}/nowhere")
    assert code == 1
    assert f"data.path={tmp_path}/nowhere" in said
    assert "does not exist. download cc12m.tsv" in said[f"data.path={tmp_path}/nowhere"]


def test_the_help_and_a_closed_pipe_need_no_torch(root: Path) -> None:
    code = (
        "import sys; from clip_lightning.data import check\n"
        "try: check.main(['--help'])\n"
        "except SystemExit: sys.exit(any(name in sys.modules for name in ('torch', 'hydra', 'matplotlib', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_reader_that_stops_early_ends_a_command_silently(root: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(0, 2))
    for command in (["-m", "clip_lightning.data.index", str(tmp_path)], ["train.py", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([sys.executable, *command], cwd=root, check=False, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")
