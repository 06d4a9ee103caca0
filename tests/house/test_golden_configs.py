"""What the presets resolve to, as text: a changed default is a change that a reviewer sees.

`UPDATE_GOLDEN=1 python -m pytest tests/house/test_golden_configs.py` writes the texts again; read the diff.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

from clip_lightning.config import compose, identity, keys, reference
from clip_lightning.config.foreign.sources import open_clip_configs
from clip_lightning.config.schema import Config

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
PAPER = ["rn50", "rn101", "rn50x4", "rn50x16", "rn50x64", "vit_b32", "vit_b16", "vit_l14", "vit_l14_336"]
COMMANDS = {
    "default": "",
    **{f"{model}-yfcc-paper": f"model={model} data=yfcc" for model in PAPER},
    "pair-cc12m-paper": "model=pair model/vision=convnext_base model/text=distilbert data=cc12m loss=sigmoid",
    "siglip_b16-cc12m": "model=siglip_b16 data=cc12m compute=openclip_cc12m",
    "vit_b32-laion400m": "model=vit_b32 data=laion400m compute=laion_b32",
    "vit_l14-datacomp_xlarge": "model=vit_l14 data=datacomp_xlarge compute=datacomp_xlarge",
}
# Tables 19 and 20 of the paper.
RATES = dict(zip(PAPER, (5e-4, 5e-4, 5e-4, 4e-4, 3.6e-4, 5e-4, 5e-4, 4e-4, 2e-5), strict=True))
# What options that stand for any tower need beside them.
BESIDE = {
    "model/vision/timm": ["model.vision.timm=resnet26d", "model.vision.image_size=64"],
    "model/text/huggingface": [
        "model.text.huggingface=some/encoder",
        "model.text.pool=mean",
        "model.text.tokenizer.vocab_size=9",
    ],
}
FROM_WEIGHTS = ("continue_pretraining", "finetune_classes", "lp_ft")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose configuration is read by model=auto; its weights are not."""
    folder = tmp_path_factory.mktemp("ViT-B-32")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_configs()["ViT-B-32"]))
    (folder / "model.safetensors").touch()
    return folder


def load(command: str) -> Config:
    config: Config = compose.load("train", shlex.split(command), check=False)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_preset_resolves_to_the_reviewed_text(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    config = load(COMMANDS[name])
    head = f"# python train.py {COMMANDS[name]}".rstrip() + f"\n# science {identity.science_hash(config)}\n"
    text = head + compose.dump(config)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert "???" not in text
    assert "${" not in text


def test_no_golden_text_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("model", PAPER)
def test_the_papers_numbers_are_its_tables(model: str) -> None:
    config = load(f"model={model} data=yfcc")
    resnet = model.startswith("rn")
    assert config.compute.learning_rate == RATES[model]
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.999 if resnet else 0.98)
    assert config.optimizer.eps == (1e-8 if resnet else 1e-6)
    assert (config.compute.global_batch, config.compute.duration, config.compute.warmup) == (
        32_768,
        "32 epochs",
        "2000 steps",
    )
    assert (config.optimizer.weight_decay, config.compute.schedule) == (0.2, "cosine")
    assert config.compute.gradient_clip is None


def options() -> list[str]:
    paths = [path.relative_to(ROOT / "conf").with_suffix("") for path in (ROOT / "conf").rglob("*.yaml")]
    names = [path.as_posix() for path in paths if len(path.parts) > 1 and path.parts[0] not in ("hydra", "local")]
    return sorted(name for name in names if not name.endswith(("/by_data", "/by_model", "/auto")))


@pytest.mark.ci
@pytest.mark.parametrize("option", options())
def test_every_option_composes_into_a_whole_config(option: str, source: Path) -> None:
    group, _, name = option.rpartition("/")
    chosen_beside = {"model": "vit_b32", "compute": "openclip_cc3m", "loss": "softmax"}
    if group.startswith("model/"):
        chosen_beside["model"] = "pair"
    if group in ("experiment", "scale"):
        chosen_beside = {}
    words = [f"{other}={choice}" for other, choice in chosen_beside.items() if other != group] + [f"{group}={name}"]
    words += BESIDE.get(option, [])
    if group == "experiment" and name in FROM_WEIGHTS:
        words.append(f"model.pretrained={source}")
    config: Config = compose.load("train", words, check=group.startswith("model"))
    if group in ("callbacks", "logger", "trainer"):
        section = getattr(config, group)
        assert section or name == "none"
        assert name in section or group == "trainer" or name == "none"
        return
    if group == "scale":
        assert config.compute.name == f"scale_{name}"
        return
    found = config.experiment if group == "experiment" else reduce(getattr, group.split("/"), config).name
    assert found == ("resnet26d" if name == "timm" else name)


def test_every_option_says_what_it_is_and_compute_its_source_cost_and_score() -> None:
    for option in options():
        text = (ROOT / "conf" / f"{option}.yaml").read_text(encoding="utf-8")
        assert text.startswith("#"), option
        if option.startswith("compute/"):
            for word in ("source:", "cost:", "expected:", "python train.py"):
                assert word in text, f"{option}: its header misses {word}"


@pytest.mark.ci
@pytest.mark.parametrize(
    "command",
    re.findall(
        r"^# (python train\.py.*)$",
        "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "conf").rglob("*.yaml"))),
        re.M,
    ),
)
def test_the_command_in_a_header_composes(command: str, source: Path) -> None:
    words = re.sub(r"model\.pretrained=(SOURCE|runs/FIRST)", f"model.pretrained={source}", command)
    load(words.removeprefix("python train.py").strip())


@pytest.mark.slow
def test_a_wrong_model_names_a_near_one_and_exits_with_2() -> None:
    command = [sys.executable, "train.py", "model=vit_l14x", "data=yfcc", "data.path=nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "model=vit_l14x: there is no such option; did you mean vit_l14" in done.stderr
    assert "data.path=nowhere does not exist: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_missing_data_is_reported_with_how_to_get_it() -> None:
    command = [sys.executable, "train.py", "data=yfcc", "data.path=nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("data.path=nowhere does not exist: ")
    assert len(sentence) > 60
    assert done.returncode == 2


def test_the_key_reference_is_current_and_every_key_has_a_meaning() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "python -m clip_lightning.config.reference"
    assert [key.name for key in keys.table(Config).values() if not key.help] == []
