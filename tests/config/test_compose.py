"""Composition: what wins, what is filled in, and that all mistakes are reported at once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.config import compose
from clip_lightning.config.command_line import with_run, with_scheduler
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError

OPTIONS = Path(__file__).parent / "options"
MINE = [f"--config-dir={OPTIONS}", "data=mine"]
# An entry file whose task shows what it was given, and whether torch was loaded before.
PROBE = """
import json, os, sys
sys.path.insert(0, {root!r})
from clip_lightning.config import compose, identity

def task(config, overrides):
    print(json.dumps([config.model.name, config.compute.seed, config.loss.name, list(overrides), os.getpid(),
                      "torch" in sys.modules]))
    return config.compute.seed

compose.main("train", sys.argv[1:], task)
"""


def load(*words: str) -> Config:
    return compose.load("train", [*MINE, *words], check=False)


def problems(*words: str, folder: Path = OPTIONS) -> list[str]:
    with pytest.raises(UserError) as caught:
        compose.load("train", [f"--config-dir={folder}", "data=mine", *words], check=False)
    return caught.value.problems


def call(arguments: list[str], cwd: Path, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    probe = cwd / "probe.py"
    probe.write_text(PROBE.format(root=str(root)), encoding="utf-8")
    environment = {**{k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}, **environment}
    command = [sys.executable, str(probe), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_data_names_model_and_compute_and_the_model_its_loss() -> None:
    config = load()
    assert (config.model.name, config.compute.name, config.loss.name) == ("mine", "mine", "mine")
    assert config.eval.tasks == ["birds"]


def test_what_is_given_wins_over_what_is_named() -> None:
    config = load("loss=other", "compute=cpu_minutes", "eval.tasks=[]")
    assert (config.compute.name, config.loss.name, config.eval.tasks) == ("cpu_minutes", "other", [])


@pytest.mark.slow
def test_recipes_fill_nulls_by_model_and_are_emptied() -> None:
    config = load()
    assert (config.compute.learning_rate, config.optimizer.eps, config.optimizer.beta2) == (3e-4, 1e-8, 0.98)
    assert config.compute.recipes == {}
    assert load("compute.learning_rate=1", "optimizer.eps=2").optimizer.eps == 2


@pytest.mark.slow
def test_a_model_without_recipe_must_set_its_keys() -> None:
    (problem,) = problems("model=normed")
    assert problem == "compute=mine has no recipe for model=normed (only for mine); set compute.learning_rate"
    assert load("model=normed", "compute.learning_rate=1e-3").model.vision.batch_norm


@pytest.mark.slow
def test_an_experiment_needs_no_plus_and_the_command_line_wins_over_it() -> None:
    config: Config = compose.load("train", [f"--config-dir={OPTIONS}", "experiment=study"], check=False)
    assert (config.experiment, config.data.name, config.loss.name) == ("study", "mine", "other")
    assert (config.compute.global_batch, config.compute.seed) == (256, 7)
    config = compose.load("train", [f"--config-dir={OPTIONS}", "experiment=study", "compute.seed=1"], check=False)
    assert config.compute.seed == 1


def test_debug_wins_over_the_experiment() -> None:
    config = load("experiment=study", "debug=overfit")
    assert (config.debug.overfit_samples, config.logger["wandb"]) == (256, None)
    assert load("debug=fast_dev_run").compute.duration == "1 steps"


def test_names_below_open_keys_are_the_users_own() -> None:
    config = load("model.text.config.hidden_size=64", "compute.recipes.mine.eps=3", "model.vision.options={a: 1}")
    assert config.model.text.config["hidden_size"] == 64
    assert config.model.vision.options == {"a": 1}
    assert config.optimizer.eps == 3


def test_all_mistakes_of_a_command_are_reported_at_once() -> None:
    message = problems(
        "model=minn",
        "compute.lr=1",
        "optimizer.beta3=1",
        "compute.learning_rate=fast",
        "fresh=maybe",
        "+compute.x=1",
        "++compute.seed=1",
        "~debug",
        "hydra/launcher=basic",
        "model.vision=resnet",
        "model/vison=resnet",
        "loss=mine,other",
        "nothing",
        "--global-batch=3",
        "experiment=none",
    )
    beginnings = [
        "model=minn: there is no such option; did you mean mine?",
        "compute.lr=1: there is no key compute.lr; did you mean compute.learning_rate (conf/compute)?",
        "optimizer.beta3=1: there is no key optimizer.beta3; did you mean optimizer.beta",
        "compute.learning_rate=fast: must be a number or null",
        "fresh=maybe: must be true or false",
        "+compute.x=1: keys cannot be added; write compute.x=1 without the plus",
        "++compute.seed=1: keys cannot be added; write compute.seed=1 without the plus",
        "~debug: keys cannot be deleted; write debug=null",
        "hydra/launcher=basic acts on sweeps only; add -m",
        "model.vision=resnet sets a whole section; write model/vision=NAME",
        "model/vison=resnet: there is no group model/vison",
        "loss=mine,other names several values; add -m",
        "nothing: a setting is written key=value",
        "--global-batch=3: there is no such flag; settings have no dashes, write global-batch=3",
        "experiment=none: there is no such option",
    ]
    assert len(message) == len(beginnings)
    for sentence, beginning in zip(message, beginnings, strict=True):
        assert sentence.startswith(beginning)
        assert "\n" not in sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("compute/mine.yaml", "name: mine\nlr: 3\n", "there is no key compute.lr; did you mean compute.learning_rate"),
        ("compute/mine.yaml", "name: mine\nglobal_batch: big\n", "compute.global_batch=big must be a whole number"),
        ("compute/mine.yaml", "name: [mine\n", "a preset is not YAML that can be read"),
        ("compute/mine.yaml", "name: mine\n", "compute.global_batch has no value"),
        ("compute/mine.yaml", "name: ${oc.env:NOT_SET}\nduration: 1\nglobal_batch: 1\n", "compute.name: its ${...}"),
        ("data/mine.yaml", "name: mine\nkind: scenes\nmodel: vit_b33\n", "data.model=vit_b33: there is no such option"),
    ],
)
def test_mistakes_inside_a_users_file_are_reported(path: str, text: str, message: str, tmp_path: Path) -> None:
    for file in OPTIONS.rglob("*.yaml"):
        target = tmp_path / file.relative_to(OPTIONS)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / path).write_text(text, encoding="utf-8")
    sentences = problems(folder=tmp_path)
    assert any(message in sentence for sentence in sentences), sentences


def test_a_preset_that_names_no_option_is_reported(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/typo.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /compute: papre\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match="a preset names compute=papre: there is no such option; did you mean paper"):
        compose.load("train", [*MINE, f"--config-dir={tmp_path}", "experiment=typo"], check=False)


def test_a_frozen_config_comes_back_the_same(tmp_path: Path) -> None:
    config = load("model.text.config.hidden_size=64", "compute.gradient_clip=1")
    (tmp_path / "config.yaml").write_text(compose.dump(config), encoding="utf-8")
    assert compose.read(tmp_path / "config.yaml") == config
    assert "???" not in compose.dump(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compute: {lr: 3}", "does not fit the schema"),
        ("a: [", "does not fit the schema"),
        ("runs: ${oc.env:HOME}", "a frozen config holds no"),
    ],
)
def test_a_foreign_config_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        compose.read(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        compose.read(tmp_path / "absent.yaml")


def test_torch_is_not_loaded_before_the_task_and_its_code_is_the_exit_code(tmp_path: Path, root: Path) -> None:
    (tmp_path / "shards").mkdir()
    done = call([*MINE, "compute.seed=3", "loss._target_=json.loads"], tmp_path, root)
    name, seed, loss, arguments, _, torch_loaded = json.loads(done.stdout)
    assert (name, seed, loss, torch_loaded) == ("mine", 3, "mine", False)
    assert arguments == [*MINE, "compute.seed=3", "loss._target_=json.loads"]
    assert done.returncode == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe.py", "shards"]


@pytest.mark.slow
def test_a_mistake_is_exit_code_2_without_traceback(tmp_path: Path, root: Path) -> None:
    done = call([*MINE, "compute.lr=3", "data.path=nowhere"], tmp_path, root)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("compute.lr=3: there is no key")
    assert any(
        line.startswith("data.path=nowhere does not exist: Ask the person who keeps the birds") for line in lines
    )
    assert "Traceback" in call([*MINE, "compute.lr=3"], tmp_path, root, HYDRA_FULL_ERROR="1").stderr


@pytest.mark.slow
def test_a_sweep_composes_every_point_with_what_its_data_names(tmp_path: Path, root: Path) -> None:
    (tmp_path / "shards").mkdir()
    words = [*MINE, "-m", "compute.seed=0,4", "loss=other", "model.text.config.hidden_size=64"]
    done = call(words, tmp_path, root)
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(model, seed, loss) for model, seed, loss, *_ in points] == [("mine", 0, "other"), ("mine", 4, "other")]
    assert "model.text.config.hidden_size=64" in points[0][3]
    assert done.returncode == 4
    assert not list(tmp_path.glob("multirun")) + list(tmp_path.glob("outputs")) + list(tmp_path.glob("*.log"))


@pytest.mark.slow
@pytest.mark.parametrize("code", [130, 143])
def test_a_sweep_that_gets_a_stop_signal_starts_no_further_point(code: int, tmp_path: Path, root: Path) -> None:
    (tmp_path / "shards").mkdir()
    done = call([*MINE, "-m", f"compute.seed=0,{code},4", "loss=other"], tmp_path, root)
    assert [json.loads(line)[1] for line in done.stdout.splitlines()] == [0, code]
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_sweep_with_a_mistake_starts_nothing(tmp_path: Path, root: Path) -> None:
    (tmp_path / "shards").mkdir()
    done = call([*MINE, "-m", "loss=other", "compute.global_batch=512,0"], tmp_path, root)
    assert (done.returncode, done.stdout) == (2, "")
    assert "compute.global_batch=0 must be above 0" in done.stderr


@pytest.mark.slow
def test_a_rank_of_a_sweeps_run_composes_that_run(tmp_path: Path, root: Path) -> None:
    (tmp_path / "shards").mkdir()
    point = json.dumps([*MINE, "compute.seed=4", "loss=other"])
    done = call([*MINE, "-m", "compute.seed=0,4", "loss=other"], tmp_path, root, CLIP_LIGHTNING_OVERRIDES=point)
    assert [json.loads(line)[1] for line in done.stdout.splitlines()] == [4]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "groups (GROUP=OPTION)"),
        (["--version"], "clip_lightning "),
        (["--cfg", "job"], "duration: 2 epochs"),
        (["--cfg", "job", "--package", "model.text"], "context_length: 77"),
        (["-m", "compute.seed=3,4", "--cfg", "job"], "seed: 4"),
        (["--cfg", "hydra"], "job_logging"),
        (["--info", "defaults"], "Defaults List"),
        (["--hydra-help"], "Hydra"),
    ],
)
def test_flags_answer_without_running(arguments: list[str], expected: str, tmp_path: Path, root: Path) -> None:
    done = call([*MINE, *arguments], tmp_path, root)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert "???" not in done.stdout or "hydra" in " ".join(arguments)


@pytest.mark.slow
def test_near_option_names_come_from_the_real_entry_file(root: Path) -> None:
    command = [sys.executable, "train.py", "logger=wandbb", "evall=none"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean wandb?" in done.stderr
    assert "did you mean eval" in done.stderr


@pytest.mark.slow
def test_what_a_preset_leaves_open_is_required(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/open.yaml").write_text("defaults: [mine]\nname: open\ntext: {pool: '???'}\n", encoding="utf-8")
    words = [*MINE, f"--config-dir={tmp_path}", "model=open", "compute.learning_rate=1"]
    with pytest.raises(UserError, match=r"^model.text.pool has no value; write model.text.pool=VALUE"):
        compose.load("train", words, check=False)
    assert compose.load("train", [*words, "model.text.pool=mean"], check=False).model.text.pool == "mean"


def test_the_slurm_launcher_means_a_job_per_run_with_and_without_a_sweep() -> None:
    assert with_scheduler(["compute.seed=1"]) == ["compute.seed=1"]
    assert with_scheduler(["hydra/launcher=slurm", "compute.seed=1"]) == ["compute.seed=1", "cluster.scheduler=slurm"]
    sweep = ["-m", "hydra/launcher=slurm", "compute.seed=1,2"]
    assert with_scheduler(sweep) == [*sweep, "cluster.scheduler=slurm"]


def test_a_frozen_config_is_read_back_unchanged_and_accepts_no_settings(tmp_path: Path) -> None:
    config = load("compute.seed=7", "cluster.slurm.extra=[--exclusive]", "cluster.scheduler=slurm")
    file = tmp_path / "config.yaml"
    file.write_text(compose.dump(config))
    assert compose.load("train", ["--frozen", str(file)], check=False) == config
    with pytest.raises(UserError, match=r"--frozen is the whole config of a run; leave out compute\.seed=8"):
        compose.load("train", ["--frozen", str(file), "compute.seed=8"], check=False)
    with pytest.raises(UserError, match="--frozen is the whole config of a run; leave out -m"):
        compose.load("train", ["-m", "--frozen", str(file)], check=False)
    with pytest.raises(UserError, match="this config cannot be read"):
        compose.load("train", ["--frozen", str(tmp_path / "none.yaml")], check=False)


@pytest.mark.slow
def test_options_and_keys_of_open_groups_are_the_users_own() -> None:
    config = load(
        "callbacks=stop",
        "callbacks.stop.patience=2",
        "callbacks.timer._target_=lightning.pytorch.callbacks.Timer",
        "callbacks.timer.duration={minutes: 1}",
        "logger=[a,b]",
        "logger.b.folder=here",
        "trainer.limit_train_batches=3",
    )
    assert config.callbacks["stop"]["patience"] == 2
    assert config.callbacks["stop"]["monitor"] == "loss"
    assert config.callbacks["timer"]["duration"] == {"minutes": 1}
    assert config.logger == {"a": {"_target_": "my.A"}, "b": {"_target_": "my.B", "folder": "here"}}
    assert config.trainer == {"limit_train_batches": 3}
    (problem,) = problems("logger=[a,c]")
    assert problem.startswith("logger=c: there is no such option")


def test_a_pattern_that_the_shell_has_expanded_is_refused_with_its_quotes(tmp_path: Path, root: Path) -> None:
    words = [f"data.path=DIR/{k:05}.tar" for k in range(6)]
    done = call([*MINE, *words], tmp_path, root)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert "'data.path=DIR/0000{0..5}.tar'" in sentence


@pytest.mark.slow
@pytest.mark.parametrize("path", ["DIR/{0..5}.tar", "/a/d\u00e9/x", "s3://a:b@c/d?e=1&f=it's", "C:\\d"])
def test_a_path_is_taken_as_it_is(path: str) -> None:
    assert load(f"data.path={path}").data.path == path


@pytest.mark.slow
@pytest.mark.parametrize("word", ["resume=true", "epochs=5", "batch_size=8", "workers=1", "gpus=2"])
def test_settings_of_other_frameworks_get_a_hint(word: str) -> None:
    (problem,) = problems(word)
    assert any(fix in problem for fix in ("fresh=true", "compute.", "cluster."))


def test_a_list_of_one_needs_no_brackets() -> None:
    assert load("eval.folders=/dir", "eval.tasks=birds").eval.folders == ["/dir"]


def test_a_mistyped_argument_is_reported_in_one_sentence() -> None:
    with pytest.raises(UserError) as caught:
        compose.load("train", [*MINE, "loss=other", "data.path='a"])
    assert len(caught.value.problems) == 1


@pytest.mark.slow
def test_own_data_has_defaults_that_run_anywhere() -> None:
    for option in ("webdataset", "csv", "folder", "parquet"):
        config: Config = compose.load("train", [f"data={option}"], check=False)
        assert (config.model.name, config.compute.name, config.compute.global_batch) == ("tiny", "cpu_minutes", 128)


@pytest.mark.slow
def test_the_papers_recipe_has_the_papers_crop() -> None:
    assert load("compute=paper", "model=vit_b32").data.augment.crop == "square"
    assert load("compute=paper", "model=vit_b32", "data.augment.crop=area").data.augment.crop == "area"


def test_evaluate_takes_a_directory_and_explains_what_a_run_is(tmp_path: Path) -> None:
    assert with_run([str(tmp_path), "--cfg", "job"]) == [f"run={tmp_path}", "--cfg", "job"]
    assert with_run(["--config-dir", str(tmp_path)]) == ["--config-dir", str(tmp_path)]
    with pytest.raises(UserError, match=r"run is not set: .* write run=runs/latest"):
        compose.load("evaluate", [])


@pytest.mark.slow
@pytest.mark.parametrize(("argv", "most"), [([], 2), (["model=vit_l14", "data=yfcc"], 2), (["model=siglip_b16"], 3)])
def test_a_command_is_composed_at_most_three_times(argv: list[str], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once to learn which model and recipe the data names, once with these, once more for a loss but the default."""
    calls = []

    def counted(*arguments: Any) -> compose.Composition:
        calls.append(arguments)
        return original(*arguments)

    original = compose._compose
    monkeypatch.setattr(compose, "_compose", counted)
    compose.load("train", argv, check=False)
    assert len(calls) <= most
