"""The commands of all pages run in a folder like a reader's: data, finished runs, a sweep, the table of a study.

Training is shortened by `debug=fast_dev_run`. NOT_RUN lists what is left out, and what tests it instead.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.house.pages import ROOT, Shown, write_config_files
from tests.house.test_readme import MODULES, SETTINGS, modules, settings_of
from tests.support.runner import Child, Runner
from tests.support.small_data import pairs, write_tar
from tests.support.small_folder import write_folder

pytestmark = pytest.mark.ci

NOT_RUN = {
    r"--help|--cfg": "test_readme.py runs them",
    r"^srun|^sbatch|hydra/launcher=slurm|cluster=slurm_(?!.*dry_run)": "tests/slurm, under a SLURM",
    r"devices=[48]": "as many GPUs",
    r"torchrun": "tests/run/test_ranks.py and test_train.py",
    r"\b(openai|open_clip):": "weights of a hub; tests/export reads files in their layout",
    r"vision\.pretrained=true|distilbert": "the same",
    r"eval=(datacomp38|retrieval)|eval\.root=(DATA|/data)": "data of its own; tests/evaluation/suite",
    r"model=vit_b16": "minutes a step on a CPU; tests/run/test_phases.py",
    r"-m experiment=scaling_grid": "hours; tests/run/plan/test_dry_run.py counts it, test_sweep.py runs such sweeps",
    r"experiments\.benchmarks|tests\.run\.kills": "measures for minutes",
    r"figures\.measure RUN --probe": "minutes; tests/experiments/test_measure.py",
    r"model\.flops": "minutes, for the largest models; tests/model/test_flops.py",
    r"clip_lightning\.demo": "serves a page; tests/test_demo.py",
    r"flight_recorder": "torch's own",
    r"runs/resnet50": "weights of a hub; tests/experiments/test_resnet50.py, with such a file",
    r"studies\.(cpu_grid|dial)": "half an hour and more; tests/experiments/test_cpu_studies.py",
}
# What pages write for something of the reader's, and what is in the folder.
HERE: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"(--train|--test) DIR": r"\1 ./classes",
    r"--folders DIR": "--folders ./test_set",
    r"eval\.folders=\[(DIR|PATH)\]": "eval.folders=[./test_set]",
    r"(experiment=(?:finetune_classes|lp_ft).*)data\.path=DIR": r"\1data.path=./classes",
    r"--root (DIR|~/datasets)": "--root ./classes",
    r"--images DIR|\bIMAGES\b": "./images",
    r"--out (DIR|features|figures)\b": "--out ./out/NUMBER",
    r"--to LIBRARY": "--to safetensors",
    r"collect runs --out study|export --out runs": lambda found: found[0].replace("--out ", "--out ./out/"),
    r"--studies 200": "--studies 4",
    r"--flops 1e14": "--flops 1e12",  # within the reach of the study that is carried
    r"pretrained=DIR|export runs/DIR": lambda found: found[0].replace("runs/", "").replace("DIR", "./weights"),
    r"test_set \.\.\.": "test_set --out ./out/NUMBER",
    r"--config-dir=DIR (?!model)(.*)": r"--config-dir=./configs \1 data.path=./data",
    r"--config-dir=DIR": "--config-dir=./configs",
    r"eval\.root=DIR": "eval.root=./classes",
    r"runs/tiny\*": "./runs/A ./runs/B ./runs/C",
    r"--features CACHE": "--features ./features",
    r"\bPATH\b": "./data",
    r"data\.exclude=\S+": "data.exclude=./exclude.txt",
    r"run=DIR|runs/latest": lambda found: found[0].replace("DIR", "runs/latest").replace("runs/", "./runs/"),
    r"\bRUN_B\b": "./runs/B",
    r"\b(RUN|RUN_A|SOURCE)\b": "./runs/A",
    r"runs/sweeps/(NAME|grid-HASH)": "./runs/sweeps/SWEEP",
    r"(?<!/)runs/([ABC]\b)": r"./runs/\1",
    r"runs/(DIR|NAME|FIRST|FINE_TUNED)\b": "./runs/B",
    r"\bSMALLER\b": "tiny_half",
    r"'32000 samples'": "'2 steps'",
}
# What ends with exit code 2 and a sentence here.
REFUSED = {
    r"plan --models vit_m16": "the ladder does not bracket the optimum",  # the page says so, and why
    r"eval=paper36": "none of its data sets is here",
    r"PATH model=vit_b32 compute=openclip_cc12m dry_run": "write compute.warmup=5%",  # of the 64 pairs here
    r"runs best imagenet": "no run in runs has imagenet/acc1",
    r"fig09_scaling runs/tiny": "a fit needs models that differ",
}
SHORT = ["debug=fast_dev_run", "compute.global_batch=16"]
CHEAP = ["eval=none", "data.validation.num_samples=0"]
MINE = """
from lightning.pytorch import Callback
class MyCallback(Callback):
    def __init__(self, patience):
        self.patience = patience
"""
TOWER = """
import timm
def build():
    return timm.create_model("test_vit", num_classes=0, img_size=224)
"""
LOSS = """
from clip_lightning.loss.softmax import LossOutput, SoftmaxLoss
class Mine(SoftmaxLoss):
    def __init__(self, weight, **settings):
        super().__init__(chunk=256)
        self.weight = weight
    def forward(self, *features):
        found = super().forward(*features)
        return LossOutput(self.weight * found.loss, found.accuracy)
"""


def is_left_out(command: Shown) -> bool:
    return any(re.search(pattern, command.text) for pattern in NOT_RUN)


def here(command: Shown, folder: Path, number: int) -> Shown:
    """A command with what is in the folder in the places of what a reader has."""
    text = command.text
    for pattern, replacement in HERE.items():
        text = re.sub(pattern, replacement, text)
    (sweep,) = (folder / "runs/sweeps").iterdir()
    text = text.replace("SWEEP", sweep.name).replace("NUMBER", str(number))
    return command._replace(text=text.replace("./", f"{folder}/"))


@pytest.fixture(scope="module")
def folder(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, images, class folders, two runs with predictions, a sweep, weights, a study's table, a package."""
    from clip_lightning.export.to_safetensors import export
    from tests.export.models import KINDS, opened

    place = tmp_path_factory.mktemp("reader")
    for k in range(4):
        write_tar(place / "data" / f"{k}.tar", pairs(k * 16, 16))
    for k in range(96):
        for file in (place / "images" / f"{k % 24}.png", place / "classes" / f"class_{k % 4}" / f"{k}.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (k % 24 * 10, 255 - k % 24 * 10, k)).save(file)
    (place / "exclude.txt").write_text("3\n")
    (place / "captions.txt").write_text("a photo of a cat\na photo of a dog\n")
    (place / "my_package").mkdir()
    (place / "my_package/__init__.py").write_text(MINE)
    (place / "my_package/losses.py").write_text(LOSS)
    (place / "my_package/towers.py").write_text(TOWER)
    write_config_files(place / "configs")
    (place / "weights").mkdir()
    export(opened(KINDS["ViT, GELU"][0](place)), place / "weights")
    (place / "study").mkdir()
    (place / "out/study").mkdir(parents=True)
    shutil.copy(ROOT / "experiments/studies/results/cpu_grid/runs.csv", place / "study/runs.csv")
    shutil.copy(place / "study/runs.csv", place / "runs.csv")
    # A command of a page may read what the one before it wrote; the two may run in different processes.
    shutil.copy(ROOT / "experiments/studies/results/cpu_grid/fit_surface.json", place / "study/fit.json")
    write_folder(place / "test_set")
    child = runner.start("train.py", "-m", f"runs={place}/runs", "compute.seed=7", *SHORT, *CHEAP, "logger=none")
    assert child.wait() == 0, child.text()
    for seed, name in enumerate("ABC"):
        run = [f"compute.seed={seed}", "data.validation.num_samples=16", "eval.tasks=[shape]"]
        runner.train(place / "runs", *run)
        child = runner.start("evaluate.py", f"run={place}/runs/latest", "eval.keep_predictions=true")
        assert child.wait() == 0, child.text()
        shutil.copytree((place / "runs/latest").resolve(), place / "runs" / name)
    return place


def check(child: Child, command: Shown) -> None:
    """Waits for a command, which ends well, or with the sentence in REFUSED."""
    sentence = next((sentence for pattern, sentence in REFUSED.items() if re.search(pattern, command.text)), None)
    assert child.wait() == (0 if sentence is None else 2), child.text()
    assert (sentence or "") in child.text()


def test_each_reason_to_leave_commands_out_is_still_needed() -> None:
    commands = [*SETTINGS, *MODULES]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, one.text) for one in commands)] == []
    assert sum(not is_left_out(command) for command in commands) >= 90


@pytest.mark.parametrize(
    "command", [one for one in SETTINGS if not is_left_out(one)], ids=lambda command: str(command.text)
)
def test_a_command_of_training_or_evaluation_runs(runner: Runner, folder: Path, command: Shown) -> None:
    name, words = settings_of(here(command, folder, 0)) or ("", [])
    if "dry_run=true" in words:
        words.append(f"runs={folder}/runs")
    elif name == "train":
        needs_evaluation = any(word.startswith("callbacks") for word in words)
        runs = folder / ("more sweeps" if "-m" in words else "runs")
        words += [f"runs={runs}", *SHORT, *([] if needs_evaluation else CHEAP)]
        words += [] if "logger" in command.text else ["logger=none"]
        words += [] if "precision" in command.text else ["compute.precision=fp32"]  # bfloat16 is emulated on many CPUs
    check(runner.start(f"{name}.py", *words, env={"PYTHONPATH": str(folder)}), command)


@pytest.mark.parametrize(
    "command", [one for one in MODULES if not is_left_out(one)], ids=lambda command: str(command.text)
)
def test_a_module_of_the_package_runs(runner: Runner, folder: Path, command: Shown) -> None:
    module, *words = modules(here(command, folder, MODULES.index(command))) or []
    check(runner.start(f"-m {module}", *words, env={"PYTHONPATH": str(folder)}, cwd=folder), command)
