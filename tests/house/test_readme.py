"""The commands of all pages are true: each is run here, or composed and checked where it needs data, a GPU or hours."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clip_lightning.config import compose
from clip_lightning.config.command_line import with_scheduler
from tests.house.pages import PAGES, ROOT, Shown, anchors, block_lines, links, shown, write_config_files
from tests.support.commands import exit_code
from tests.support.runner import Runner

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted({command.text: command for page in PAGES for command in shown(page)}.values(), key=lambda c: c.text)
FORMS = ("key=value", "experiment=...", "VERB")  # what shows the form of a command, and is not one
# What pages write for something of the reader's, and what the tests put there.
STAND_INS = {
    r"pretrained=(runs/FIRST|SOURCE|openai:ViT-B/32|DIR)": "pretrained={weights}",
    r"\brun=DIR\b": "run={run}",
    r"\beval\.root=\S+": "eval.root={data}",
    r"\bPATH\b|\bDIR\b|\bIMAGES\b": "{data}",
    r"\bruns/[A-Z_]+\b|\bruns/latest\b|\bRUN\b": "{run}",
    r"\bSMALLER\b": "tiny_half",
    r"\bstudy\b": "{data}",
    r"\bruns/figures/fig17_overlap_exclude\.txt": "{data}/exclude.txt",
}
HELP: dict[tuple[str, ...], str] = {}


def settings_of(command: Shown) -> tuple[str, list[str]] | None:
    """train or evaluate and the settings of such a command, also under torchrun, srun or sbatch; None of another."""
    words = command.words
    for entry, name in (("train.py", "train"), ("evaluate.py", "evaluate"), ("slurm/train.sbatch", "train")):
        if entry in words:
            return name, words[words.index(entry) + 1 :]
    if words[0] == "clip-lightning":
        return words[1], words[2:]
    return None


def modules(command: Shown) -> list[str] | None:
    """The words behind `python -m`, its module first; None of another command."""
    return command.words[2:] if command.words[:2] == ["python", "-m"] else None


SETTINGS = [
    command
    for command in COMMANDS
    if (settings := settings_of(command)) and not any(form in command.text for form in FORMS)
    if settings[1] or command.words[0] != "clip-lightning"  # its name alone
]
MODULES = [command for command in COMMANDS if modules(command) and not any(form in command.text for form in FORMS)]


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A word of a command with something real for what the reader has: data, a run, a folder with options."""
    folder = tmp_path_factory.mktemp("reader")
    places = {name: folder / name for name in ("data", "run", "weights")}
    for place in places.values():
        place.mkdir()
    from clip_lightning.export.to_safetensors import export  # torch, which the tests of links need not wait for
    from tests.export.models import KINDS, opened

    export(opened(KINDS["ViT, GELU"][0](folder)), places["weights"])
    (places["data"] / "exclude.txt").write_text("3\n", encoding="utf-8")
    (folder / "my_package").mkdir()
    (folder / "my_package/__init__.py").write_text("class MyCallback:\n    pass\n", encoding="utf-8")
    (folder / "my_package/losses.py").write_text("class Mine:\n    pass\n", encoding="utf-8")
    (folder / "my_package/towers.py").write_text("def build() -> None:\n    pass\n", encoding="utf-8")
    monkeypatch_module.syspath_prepend(folder)
    (places["run"] / "config.yaml").write_text(compose.dump(compose.load("train", ["data=scenes"])), encoding="utf-8")
    write_config_files(places["data"])

    def fill(word: str) -> str:
        for pattern, stand_in in STAND_INS.items():
            word = re.sub(pattern, lambda match, stand_in=stand_in: stand_in.format(**places), word)
        return word

    return fill


def test_readme_shows_commands_of_every_kind() -> None:
    assert len(SETTINGS) >= 60
    assert len({modules(command)[0] for command in MODULES}) >= 20  # type: ignore[index]


def test_every_line_of_a_console_block_is_a_command_that_is_known_here() -> None:
    known = {command.text for command in COMMANDS}
    wrong = [f"{page.name}: {line}" for page in PAGES for line in block_lines(page)
             if line.strip().removeprefix("$ ") not in known]  # fmt: skip
    assert not wrong, "\n".join(wrong)


@pytest.mark.ci
@pytest.mark.parametrize("command", SETTINGS, ids=lambda command: command.text)
def test_settings_compose_and_pass_the_checks(
    command: Shown, filled: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, words = settings_of(command) or ("", [])
    words = [filled(word) for word in words if word != "..."]
    if "--cfg" in words or "-m" in words or "--help" in words:
        with pytest.raises(SystemExit) as ended:
            compose.main(name, [*words, *(["--cfg", "job"] if "-m" in words else [])], pytest.fail)
        assert ended.value.code == 0, capsys.readouterr().err
        assert "???" not in capsys.readouterr().out
        return
    has_path = any(word.startswith("data.path=") or word == "data=scenes" for word in words)
    if not has_path and re.search(r"\b(data|experiment)=", command.text):
        words.append(filled("data.path=PATH"))
    compose.load(name, with_scheduler(words))


@pytest.mark.slow
@pytest.mark.parametrize("command", MODULES, ids=lambda command: command.text)
def test_modules_know_the_flags_that_are_shown(command: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    module, *words = modules(command) or []
    verb = words[:1] if module in ("clip_lightning.scaling", "clip_lightning.run.sweep", "clip_lightning.runs") else []
    if (module, *verb) not in HELP:
        assert exit_code(module, [*verb, "--help"]) == 0
        HELP[module, *verb] = capsys.readouterr().out
    page = HELP[module, *verb]
    assert "usage:" in page
    assert not [word for word in words if word.startswith("--") and not re.search(rf"{word.partition('=')[0]}\b", page)]


def test_other_commands_name_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for command in COMMANDS:
        words = command.words
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in words[1:2]), command
        if words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words[1:] if not word.startswith("-")), command
        for extra in re.findall(r"clip_lightning\[(\w+)\]", command.text):
            assert extra in extras, command


@pytest.mark.ci
def test_the_commands_of_the_tutorial_run_in_their_order(
    runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the length and the tasks of `debug=fast_dev_run`; what serves a page is left to its own test."""
    num_run = 0
    commands = list(shown(ROOT / "docs/tutorial.md"))
    readme = {command.text for command in shown(ROOT / "README.md")}
    assert {command.text for command in commands} & readme >= {
        "python train.py debug=fast_dev_run",
        "python evaluate.py run=runs/latest",
        "python -m experiments.figures.run_figures runs/latest",
    }
    for command in commands:
        text = command.text.replace("runs/latest", f"{tmp_path}/runs/latest")
        settings = settings_of(command._replace(text=text))
        if settings and not {"--help", "--cfg"} & set(settings[1]):
            name, words = settings
            if "PATH" in text or "dry_run=true" in text or words == ["compute.seed=1"]:
                continue  # composed above, without data or an estimate; the sweep below it trains other seeds
            short = ["debug=fast_dev_run", f"runs={tmp_path}/runs"] if name == "train" else []
            words = [word for word in words if word not in short and not ("-m" in words and "duration" in word)]
            child = runner.start(f"{name}.py", *words, *short)
            assert child.wait() == 0, f"{text}\n{child.text()}"
            num_run += 1
        elif (words := modules(command._replace(text=text)) or []) and words[0] != "clip_lightning.demo":
            if "PATH" in text:
                continue
            assert exit_code(words[0], words[1:]) == 0, text
            num_run += 1
    assert num_run >= 7
    assert (tmp_path / "runs/latest/figures/predictions.png").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    wrong = []
    for link, anchor in links(page):
        target = page.parent / link if link else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{link}#{anchor}")
    assert not wrong
