"""Class names and templates as they are published, read without running anything."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.suite import names
from clip_lightning.evaluation.suite.entry import entry_names, load_entry, parse_entry
from clip_lightning.evaluation.suite.loaders import LOADERS
from clip_lightning.evaluation.suite.loaders.found import Found, same
from clip_lightning.evaluation.tasks import build_task
from tests.evaluation.suite.drawing import write
from tests.evaluation.suite.layouts import BUILDERS


@pytest.mark.slow
def test_open_clips_templates_equal_those_that_it_computes() -> None:
    from open_clip.zero_shot_metadata import (
        IMAGENET_CLASSNAMES,
        OPENAI_IMAGENET_TEMPLATES,
        SIMPLE_IMAGENET_TEMPLATES,
    )

    for name, functions in (
        ("OPENAI_IMAGENET_TEMPLATES", OPENAI_IMAGENET_TEMPLATES),
        ("SIMPLE_IMAGENET_TEMPLATES", SIMPLE_IMAGENET_TEMPLATES),
    ):
        found = names.open_clip_templates(name)
        assert [template.replace("{c}", "x") for template in found] == [function("x") for function in functions]
    assert names.open_clip_classnames() == list(IMAGENET_CLASSNAMES)
    assert (len(found), len(names.open_clip_classnames())) == (7, 1000)


@pytest.mark.slow
def test_no_package_is_imported_for_its_names(tmp_path: Path) -> None:
    BUILDERS["imagenet_a"](tmp_path)
    BUILDERS["gtsrb"](tmp_path)
    code = (
        "import sys; from pathlib import Path; from clip_lightning.evaluation.tasks import build_task, main; "
        "print([build_task(name, Path(sys.argv[1])).names_from for name in ('imagenet_a', 'gtsrb')]); main([]); "
        "assert not {'open_clip', 'clip_benchmark', 'timm', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "open_clip_torch" in done.stdout
    assert "clip-benchmark" in done.stdout


def test_imagenets_names_are_matched_by_synset() -> None:
    keys = names.timm_list("imagenet_synsets.txt")
    found = dict(zip(keys, names.open_clip_classnames(), strict=True))
    assert found["n01440764"] == "tench"
    assert found["n15075141"] == "toilet paper"
    assert found["n02119789"] == "kit fox"
    for subset in ("imagenet_a_synsets.txt", "imagenet_r_synsets.txt"):
        assert len(names.timm_list(subset)) == 200
        assert set(names.timm_list(subset)) <= set(keys)


@pytest.mark.parametrize("name", entry_names())
def test_an_entry_is_whole(name: str) -> None:
    entry = load_entry(name)
    assert entry.title
    assert entry.get
    assert not entry.get.endswith(".")
    assert "{c}" in entry.single
    keys = names.canonical_keys(entry)
    assert keys is None or len(set(map(same, keys))) == len(keys) == entry.classes
    for source in (*entry.names, *entry.templates):
        kind, value = next(iter(source.items()))
        if kind == "clip_benchmark" and source in entry.names:
            assert len(names.clip_benchmark("classnames")[value]) == entry.classes
        if kind == "clip_benchmark" and source in entry.templates:
            assert names.clip_benchmark("zeroshot_classification_templates")[value]
    for source in entry.sources:
        assert source.loader in LOADERS
        assert source.needs


def test_a_wrong_entry_is_refused() -> None:
    with pytest.raises(UserError, match=r"x.yaml: unknown key colour; known are .*classes"):
        parse_entry("x", "title: X\nclasses: 2\nmetric: acc1\nget: buy it\ncolour: red\n")
    with pytest.raises(UserError, match=r"x.yaml: classes, metric is missing"):
        parse_entry("x", "title: X\nget: buy it\n")


def test_names_of_keys() -> None:
    rule = names.FROM_KEY
    assert rule["sun397"]("/a/apartment_building/outdoor") == "apartment building outdoor"
    assert rule["camel_case"]("ApplyEyeMakeup") == "Apply Eye Makeup"
    assert rule["camel_case"]("YoYo") == "Yo Yo"
    assert rule["camel_case"]("TaiChi") == "Tai Chi"


PROMPTS = """# Prompts

## Food101

```bash
classes = [
    'baklava',
    'apple pie',
]

templates = [
    'a picture of {}, a type of food.',
]
```

## FacialEmotionRecognition2013

```bash
classes = [
    ['angry'], ['disgusted'], ['fearful'], ['happy', 'smiling'], ['sad'], ['surprised', 'shocked'], ['neutral'],
]

templates = ['a {} face.']
```
"""


def test_prompts_md_is_taken_in_the_order_of_the_labels(tmp_path: Path) -> None:
    BUILDERS["food101"](tmp_path)
    BUILDERS["fer2013"](tmp_path)
    write(tmp_path / "prompts.md", PROMPTS)
    task = build_task("food101", tmp_path)
    assert list(task.classnames) == ["apple pie", "baklava"]  # the labels' order, not that of the file
    assert list(task.templates) == ["a picture of {c}, a type of food."]
    assert "prompts.md" in task.names_from
    faces = build_task("fer2013", tmp_path)
    assert faces.classnames[3] == "happy"
    assert list(faces.templates) == ["a {c} face."]


def test_prompts_md_is_not_run(tmp_path: Path) -> None:
    BUILDERS["food101"](tmp_path)
    write(tmp_path / "prompts.md", "## Food101\n```bash\nclasses = [open('x')]\ntemplates = []\n```\n")
    with pytest.raises(DataError, match="the section Food101 is not of OpenAI's format"):
        build_task("food101", tmp_path)


def test_a_users_files_come_first(tmp_path: Path) -> None:
    BUILDERS["gtsrb"](tmp_path)
    write(tmp_path / "gtsrb" / "classnames.txt", "".join(f"{42 - k}\tsign {42 - k}\n" for k in range(43)))
    write(tmp_path / "gtsrb" / "templates.txt", "\ufeffthe {}\r\na {c}\r\n")
    task = build_task("gtsrb", tmp_path)
    assert task.classnames[14] == "sign 14"  # by key, whatever the order of the lines
    assert list(task.templates) == ["the {c}", "a {c}"]


def test_names_needed_says_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUILDERS["gtsrb"](tmp_path)

    def absent(*_: object) -> Path:
        raise names.NamesNeededError("install the package that has them: pip install clip-benchmark==1.6.2")

    monkeypatch.setattr(names, "_package", absent)
    names.clip_benchmark.cache_clear()
    with pytest.raises(names.NamesNeededError, match=r"gtsrb: class names needed; .*pip install clip-benchmark==1.6.2"):
        build_task("gtsrb", tmp_path)
    found = Found(np.zeros(1, dtype=np.int64), lambda _: b"", ["0"], ["stop"])
    assert names.names_of(load_entry("gtsrb"), found, tmp_path).templates == [load_entry("gtsrb").single]
    names.clip_benchmark.cache_clear()


def test_the_documentation_lists_every_entry(root: Path) -> None:
    text = (root / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in entry_names():
        entry = load_entry(name)
        assert f"\n| {name} | {entry.title} | {entry.classes:,} | {entry.metric} |" in text, name
