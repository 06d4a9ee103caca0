"""Durations: every form, exactly, in whole steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_lightning.config.duration import to_samples
from clip_lightning.errors import UserError


def samples(text: str, batch: int = 1, epoch: int | None = 1000, total: int | None = 100_000) -> int:
    return to_samples(text, global_batch=batch, epoch_samples=epoch, total_samples=total)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400M", 400_000_000),
        ("400M samples", 400_000_000),
        ("12.8B samples", 12_800_000_000),
        ("1.28B", 1_280_000_000),
        ("200k samples", 200_000),
        ("1_000 samples", 1000),
        ("1,000 samples", 1000),
        ("1 samples", 1),
        ("7 steps", 7),
        ("1 step", 1),
        ("32 epochs", 32_000),
        ("0.5 epochs", 500),
        ("1epoch", 1000),
        ("5%", 5000),
        ("0.05", 5000),
        ("100%", 100_000),
        ("0", 0),
        ("0 samples", 0),
    ],
)
def test_every_form_is_counted_exactly(text: str, expected: int) -> None:
    assert samples(text) == expected


@pytest.mark.parametrize(
    "text", ["", "fast", "-3 steps", "3 stps", "1", "1.0", "250", "1e5", "5 %%", "3 M epochs of", "1e", "5m"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a duration|has no unit"):
        samples(text)


def test_samples_are_whole_steps_and_never_none_of_them() -> None:
    assert samples("100 samples", batch=64) == 128
    assert samples("90 samples", batch=64) == 64
    assert samples("96 samples", batch=64) == 128
    assert samples("1 samples", batch=64) == 64
    assert samples("0 samples", batch=64) == 0
    assert samples("2000 steps", batch=32_768) == 65_536_000


def test_the_papers_run_is_14453_steps() -> None:
    """14.8M pairs of YFCC, 32 epochs of 32,768 (Table 18)."""
    assert samples("32 epochs", batch=32_768, epoch=14_800_000) == 14_453 * 32_768


def test_an_unknown_unit_is_reported() -> None:
    with pytest.raises(UserError, match="how many pairs an epoch has is not known"):
        samples("3 epochs", epoch=None)
    with pytest.raises(UserError, match="the run's own length"):
        samples("3%", total=None)


@given(st.integers(1, 10**12), st.integers(1, 10**6))
def test_rounding_is_to_the_nearest_step(amount: int, batch: int) -> None:
    found = samples(f"{amount} samples", batch=batch)
    assert found % batch == 0
    assert found >= batch
    assert abs(found - amount) <= batch / 2 or found == batch
