"""Texts grouped by length give the features and gradients of the whole batch, for fewer tokens."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.config.schema import TextConfig
from clip_lightning.training.length_groups import GROUP_TOKENS, LengthGroups, can_group, plan_groups
from clip_lightning.training.step_context import StepContext
from tests.support.small_run import CONTEXT, Stream, fit, global_batch, small_config, small_module

CPU = torch.device("cpu")


@settings(deadline=None)
@given(st.lists(st.integers(1, 77), min_size=1, max_size=200))
def test_every_text_is_in_one_group_and_fits(lengths: list[int]) -> None:
    given_lengths = torch.tensor(lengths)
    plan = plan_groups(given_lengths, CPU)
    rows = torch.cat([rows for rows, _ in plan.groups])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert torch.equal(rows[plan.back], torch.arange(len(lengths)))
    assert all(given_lengths[rows].max() == longest for rows, longest in plan.groups)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_no_other_groups_of_neighbours_are_cheaper(lengths: list[int]) -> None:
    def tokens(bounds: tuple[int, ...]) -> int:
        edges = [0, *bounds]
        counts = [sum(low < n <= high for n in lengths) for low, high in itertools.pairwise(edges)]
        return sum(count * high + GROUP_TOKENS for count, high in zip(counts, bounds, strict=True))

    values = sorted(set(lengths))
    every = (
        (*inner, values[-1])
        for size in range(min(4, len(values)))
        for inner in itertools.combinations(values[:-1], size)
    )
    plan = plan_groups(torch.tensor(lengths), CPU)
    assert sum(len(rows) * longest + GROUP_TOKENS for rows, longest in plan.groups) == min(map(tokens, every))


def test_features_and_gradients_are_those_of_the_undivided_batch() -> None:
    module = small_module(small_config())
    text = module.model.text
    batch = global_batch(0)
    direction = torch.randn(16)
    found = []
    for plan in (None, plan_groups(batch.lengths, CPU)):
        if plan is not None:
            assert len(plan.groups) > 1
        text.zero_grad()
        module._prepared.step.context = StepContext(keys=batch.sample_ids, plan=plan)
        features = text(batch.tokens, batch.lengths)
        (features @ direction).square().sum().backward()
        found.append([features.detach(), *(p.grad.clone() for p in text.parameters())])
    for whole, grouped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TextConfig(context_length=CONTEXT), True),
        (TextConfig(pool="mean", mask_padding=True), True),
        (TextConfig(pool="last", pad_to_context=True), False),
        (TextConfig(pool="cls", pad_to_context=True), False),
        (TextConfig(_target_="mine.Encoder"), False),
    ],
)
def test_only_exact_towers_are_grouped(text: TextConfig, expected: bool) -> None:
    assert can_group(text, has_random_layers=False) is expected
    assert not can_group(text, has_random_layers=True)


def test_texts_are_not_grouped_outside_of_training_steps() -> None:
    module = small_module(small_config())
    assert isinstance(module.model.text.forward, LengthGroups)
    fit(module, Stream(0, 1))
    assert module._prepared.step.context is None
