"""A teacher is frozen, is not part of the run's state, and must read the student's tokens."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_lightning.config import compose
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.training.teacher import Teacher, find_teacher
from tests.support.small_run import Stream, fit, global_batch, small_config, small_module, teacher_run


@pytest.fixture
def student(tmp_path: Path) -> Config:
    config = small_config("distill")
    config.loss.teacher = str(teacher_run(tmp_path / "teacher"))
    return config


def test_the_teacher_is_in_no_state_of_the_run_and_stays_as_it_was(student: Config) -> None:
    module, alone = small_module(student), small_module(small_config())
    assert module.teacher is not None
    before = {name: weight.clone() for name, weight in module.teacher.model.state_dict().items()}
    fit(module, Stream(0, 2))
    assert module.state_dict().keys() == alone.state_dict().keys()
    assert len(list(module.parameters())) == len(list(alone.parameters()))
    assert all(torch.equal(before[name], weight) for name, weight in module.teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in module.teacher.model.parameters())


@pytest.mark.slow
def test_the_teacher_reads_the_students_images_at_its_own_size(student: Config) -> None:
    teacher, batch = Teacher(find_teacher(student)), global_batch(0)
    pieces = teacher.features(*batch[:3], batch=7, autocast=nullcontext())
    sizes: list[torch.Size] = []
    teacher.model.vision.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    whole = teacher.features(*batch[:3], batch=24, autocast=nullcontext())
    assert sizes == [(24, 3, 32, 32)]
    torch.testing.assert_close(pieces, whole)
    assert not any(value.requires_grad for value in whole.values())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 65}, "its tokenizer (paper, 64, none) is not the student's (paper, 65, none)"),
    ({"context_length": 17}, "it reads 16 tokens, and model.text.context_length=17; write 16 or less"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD)
def test_a_teacher_that_reads_other_tokens_is_refused(student: Config, changes: dict[str, Any], sentence: str) -> None:
    text = student.model.text
    student.model.text = replace(text, tokenizer=replace(text.tokenizer, **changes)) if "vocab_size" in changes else (
        replace(text, **changes)
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        find_teacher(student)
    assert sentence in str(error.value)


def test_a_teacher_is_a_finished_run_and_brings_no_code(student: Config) -> None:
    folder = Path(str(student.loss.teacher))
    (folder / "status.json").write_text('{"status": "stopped"}')
    config = compose.read(folder / "config.yaml")
    config.model.vision._target_ = "os.system"
    (folder / "config.yaml").write_text(compose.dump(config))
    with pytest.raises(UserError) as error:
        find_teacher(student)
    assert ["is stopped" in problem for problem in error.value.problems] == [True, False]
    assert "model.vision._target_=os.system would be imported" in error.value.problems[1]
