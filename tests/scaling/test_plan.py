"""Plans: hand-worked FLOPs, recipes that follow the length, ladders that do not bracket, files that compose."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from clip_lightning.config import compose
from clip_lightning.config.duration import to_samples
from clip_lightning.errors import UserError
from clip_lightning.model.named import names
from clip_lightning.scaling import plan
from clip_lightning.scaling.__main__ import main
from clip_lightning.scaling.costs import DEVICES, Cost, of_models
from clip_lightning.scaling.law import load
from clip_lightning.scaling.recipe import ANCHORS

ROOT = Path(__file__).parents[2]
H100 = plan.Hardware(DEVICES["h100"], 0.35, 2.5)
# name: image size, patch, width, layers of the vision tower; width, layers of the text tower; width of the space
VITS = {
    "vit_b32": (224, 32, 768, 12, 512, 12, 512),
    "vit_b16": (224, 16, 768, 12, 512, 12, 512),
    "vit_l14": (224, 14, 1024, 24, 768, 12, 768),
}


def block(tokens: int, width: int) -> int:
    """A transformer block of 4 times the width: four projections, two attention products, two layers of the MLP."""
    return 8 * tokens * width**2 + 4 * tokens**2 * width + 16 * tokens * width**2


def by_hand(name: str) -> tuple[int, int]:
    """Forward FLOPs of an image and of a text."""
    size, patch, width, layers, text_width, text_layers, space = VITS[name]
    patches = (size // patch) ** 2
    image = 2 * patches * 3 * patch**2 * width + layers * block(patches + 1, width) + 2 * width * space
    return image, text_layers * block(77, text_width) + 2 * text_width * space


@pytest.mark.parametrize("name", VITS)
def test_carried_flops_equal_hand_worked_ones(name: str) -> None:
    (cost,) = of_models([name])
    assert (cost.image_flops, cost.text_flops) == by_hand(name)


@pytest.mark.parametrize("budget", [1e20, 1e21, 1e22])
def test_samples_and_hours_of_a_cell_equal_hand_worked_ones(budget: float) -> None:
    (cost,) = of_models(["vit_b32"])
    one = plan.cell(cost, budget, ANCHORS["laion"], H100)
    per_sample = 3 * sum(by_hand("vit_b32")) + 6 * one.recipe.global_batch * 512
    assert one.flops == per_sample * one.recipe.samples
    assert one.flops == pytest.approx(budget, rel=1e-3)
    assert one.device_hours == pytest.approx(one.flops / (989.4e12 * 0.35) / 3600)
    assert one.price == pytest.approx(2.5 * one.device_hours)


def test_ladders_of_the_paper_and_of_laion_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "--ladder", "laion", "--budgets", "1e20", "1e21", "1e22", "--device", "h100", "--mfu", "0.35"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "27 runs" in printed
    assert "hours at 35% of 989.4 TFLOP/s" in printed
    assert main(["plan", "--ladder", "paper", "--budgets", "1e20:1e22:3", "--unbracketed"]) == 0
    assert "24 runs" in capsys.readouterr().out


def test_ladder_that_does_not_bracket_the_optimum_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"expects vit_b16, the largest of the ladder, to be the best, 0\.\d+ ahead of vit_b32.*add larger models",
    ):
        main(["plan", "--models", "vit_s32", "vit_b32", "vit_b16", "--budgets", "1e22"])
    with pytest.raises(UserError, match=r"the smallest of the ladder.*add smaller models"):
        main(["plan", "--models", "vit_l14", "vit_h14", "vit_g14", "--budgets", "1e20"])
    with pytest.raises(UserError, match="2 models of the ladder can train on it"):
        main(["plan", "--models", "vit_b32", "vit_b16", "--budgets", "1e20"])


def test_recipe_follows_the_length_of_a_run() -> None:
    anchor = ANCHORS["laion"]
    short, long = anchor.recipe(6.4e6), anchor.recipe(640e6)
    # "Robust comparison": about 1k is best at 6.4M samples, 16k to 45k at 640M.
    assert short.global_batch == 1024
    assert long.global_batch == 16384
    assert long.learning_rate == pytest.approx(short.learning_rate * 100**0.21, rel=1e-2)
    assert (short.beta2, long.beta2) == (0.98, 0.95)
    for recipe in (short, long):
        assert recipe.samples % recipe.global_batch == recipe.warmup_samples % recipe.global_batch == 0
        assert recipe.warmup_samples == pytest.approx(0.05 * recipe.samples, rel=0.05)


def test_rate_of_the_ladder_for_a_cpu_follows_the_width_and_that_of_laion_does_not() -> None:
    names = ["tiny_quarter", "tiny_half", "tiny"]
    budgets = [cost.towers() * 256e3 for cost in of_models(names)]
    cells = [
        plan.cell(cost, budget, ANCHORS["cpu"], H100) for cost, budget in zip(of_models(names), budgets, strict=True)
    ]
    rates = [one.recipe.learning_rate for one in cells]
    # FLOPs are not quite the square of the width: the first layer reads 3 channels at any width.
    assert [rate / rates[-1] for rate in rates] == pytest.approx([4, 2, 1], rel=0.05)
    small, large = (plan.cell(cost, 1e20, ANCHORS["laion"], H100) for cost in of_models(["vit_m16", "vit_l14"]))
    ratio = small.recipe.samples / large.recipe.samples
    assert small.recipe.learning_rate / large.recipe.learning_rate == pytest.approx(ratio**0.21, rel=0.02)


@pytest.mark.slow
def test_recipe_at_the_anchor_is_the_preset() -> None:
    anchor = ANCHORS["cpu"]
    recipe = anchor.recipe(anchor.samples)
    preset = compose.load("train", ["data=scenes"], check=False).compute
    assert (recipe.global_batch, recipe.learning_rate) == (preset.global_batch, preset.learning_rate)
    assert preset.name == anchor.name
    assert to_samples(preset.duration, global_batch=128, epoch_samples=None, total_samples=None) == recipe.samples


def test_branches_of_a_trunk_share_batch_and_rate() -> None:
    costs = of_models(["vit_s32", "vit_b32", "vit_b16"])
    cells = plan.grid(costs, [1e18, 1e19], ANCHORS["laion"], H100, design="trunk")
    for name in ("vit_s32", "vit_b32", "vit_b16"):
        found = {(one.recipe.global_batch, one.recipe.learning_rate) for one in cells if one.model == name}
        assert len(found) == 1


@pytest.mark.slow
def test_experiment_files_compose_to_the_cells(tmp_path: Path) -> None:
    words = [
        "plan",
        "--ladder",
        "cpu",
        "--budgets",
        "1e12:1e13:2",
        "--out",
        str(tmp_path),
        "--json",
        str(tmp_path / "p.json"),
    ]
    assert main([*words, "--design", "trunk"]) == 0
    cells = json.loads((tmp_path / "p.json").read_text())
    assert len(cells) == 2 * len(plan.LADDERS["cpu"])
    cell = cells[2]
    config = compose.load("train", [f"--config-dir={tmp_path}", f"experiment={cell['name']}"])
    assert (config.model.name, config.data.name) == (cell["model"], "scenes")
    assert config.compute.global_batch == cell["recipe"]["global_batch"]
    assert config.compute.duration == f"{cell['recipe']['samples']} samples"
    assert config.compute.learning_rate == pytest.approx(cell["recipe"]["learning_rate"])
    assert config.compute.schedule == "constant_cooldown"
    assert config.optimizer.beta2 == cell["recipe"]["beta2"]


@pytest.mark.slow
def test_rungs_of_the_dial_are_what_plan_writes_and_they_compose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the source names the study's fit from there
    source = (ROOT / "conf/scale/r1.yaml").read_text().split("# source: ")[1].split("\n")[0]
    words = source.removeprefix("python -m clip_lightning.scaling ").split()
    assert words[-1] == "conf"
    assert main([*words[:-1], str(tmp_path)]) == 0
    files = sorted((ROOT / "conf/scale").glob("*.yaml"))
    assert [file.name for file in files] == [f"r{number}.yaml" for number in range(1, 6)]
    for file in files:
        assert (tmp_path / "scale" / file.name).read_text() == file.read_text(), "plan --dial conf writes it again"
        content = yaml.safe_load(file.read_text())
        config = compose.load("train", [f"scale={file.stem}", "data=scenes"])
        assert content["compute"]["name"] == config.compute.name == f"scale_{file.stem}"
        assert {"override /model": config.model.name} in content["defaults"]


def test_rung_of_a_fit_is_where_its_model_is_the_best() -> None:
    law, costs = load(plan.PRIOR), of_models(["vit_s32", "vit_b32", "vit_l14"])
    budgets = plan.rung_budgets(costs, law)
    assert budgets == sorted(budgets)
    near = [replace_flops(costs[1], factor) for factor in (0.8, 1.0, 1.25)]
    values = [
        float(law.values({"n": [one.towers()], "d": [budgets[1] / one.towers()]})[0]) for one in near
    ]  # fmt: skip
    assert max(values) == values[1]


def test_rung_of_a_budget_is_its_best_model() -> None:
    law, costs = load(plan.PRIOR), of_models(["vit_s32", "vit_b32", "vit_l14"])
    low, _, high = plan.rung_budgets(costs, law)
    cells = plan.best_cells(costs, [low, high], ANCHORS["laion"], plan.Hardware(1e15, 0.4), law)
    assert [one.model for one in cells] == ["vit_s32", "vit_l14"]
    assert [one.flops for one in cells] == pytest.approx([low, high], rel=0.01)


def replace_flops(cost: Cost, factor: float) -> Cost:
    return replace(cost, image_flops=cost.image_flops * factor, text_flops=cost.text_flops * factor)


def test_recommendation_is_a_config_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    words = [
        "recommend",
        str(plan.PRIOR),
        "--price-per-hour",
        "2.5",
        "--unique",
        "4e8",
        "--out",
        str(tmp_path),
        "--json",
        str(out),
    ]
    assert main([*words, "--money", "5000"]) == 0
    content = json.loads(out.read_text())
    assert content["budget"] == pytest.approx(2000 * 3600 * 989.4e12 * 0.35)
    best, printed = content["best"], capsys.readouterr().out
    assert content["interval"][0] < best["expected"] < content["interval"][1]
    assert best["expected"] == max(cell["expected"] for cell in content["cells"])
    assert "one smaller" in printed
    assert "epochs of 400M unique pairs" in printed
    config = compose.load("train", [f"--config-dir={tmp_path}", f"experiment={best['name']}"], check=False)
    assert config.model.name == best["model"]


def test_recommendation_past_the_reach_needs_a_flag() -> None:
    with pytest.raises(UserError, match="284 times the largest of the fit"):
        main(["recommend", str(plan.PRIOR), "--flops", "1e24"])
    assert main(["recommend", str(plan.PRIOR), "--flops", "1e24", "--beyond-reach"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budgets", "much"], "write FLOPs like 1e20"),
        ([], "--budgets needs one number"),
        (["--budgets", "1e20", "--mfu", "35"], "--mfu 35: this is a share"),
        (["--dial", "x"], "--dial needs a fit"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["plan", "--ladder", "cpu", *words])


@pytest.mark.ci
def test_carried_costs_are_what_the_models_cost() -> None:
    carried = ROOT / "clip_lightning/scaling/models.csv"
    table = pd.read_csv(carried)
    assert table.model.to_list() == names()
    # Deep models take most of the time; the operations of all are compared with published ones in tests/model.
    small = table.model[table.parameters < 1.6e8].to_list()
    command = [sys.executable, "-m", "clip_lightning.model.flops", "--csv"]
    printed = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    missing = set(printed.splitlines()) - set(carried.read_text().splitlines())
    assert not missing, f"write the output of {' '.join(command[1:])} to {carried}"
    assert set(table.model) >= {name for ladder in plan.LADDERS.values() for name in ladder}
