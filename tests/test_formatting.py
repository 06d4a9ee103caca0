"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clip_lightning import formatting
from clip_lightning.formatting import aligned, bytes_shown, clock, count, listed, percent, setting, with_interval


@pytest.mark.parametrize(
    ("started", "command"),
    [
        ("/venv/bin/clip-lightning", "clip-lightning train 'compute.duration=8 steps'"),
        ("/site/clip_lightning/__main__.py", "python -m clip_lightning train 'compute.duration=8 steps'"),
        ("train.py", "python train.py 'compute.duration=8 steps'"),
        ("evaluate.py", "python train.py 'compute.duration=8 steps'"),
        ("-c", "python train.py 'compute.duration=8 steps'"),
    ],
)
def test_a_command_is_shown_as_the_process_was_started(
    started: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [started])
    assert formatting.own_command("train", ["compute.duration=8 steps"]) == command


def test_units() -> None:
    assert [count(n) for n in (950, 1280, 51_200, 12_800_000_000)] == ["950", "1.28k", "51.2k", "12.8B"]
    assert count(2.5e9, "G") == "2.5G"
    assert [clock(s) for s in (0, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
    assert [bytes_shown(n) for n in (75.3 * 2**20, 1.5 * 2**30)] == ["75.3 MiB", "1.50 GiB"]
    assert [formatting.hours(n) for n in (None, 0.0123, 76_012.0)] == ["-", "0.0123", "76,000"]
    assert percent(0.614) == "61.4%"


def test_an_interval_keeps_its_own_ends() -> None:
    assert with_interval(1 / 17, 0.01, 0.27) == "5.9% [1.0%, 27.0%]"
    assert with_interval(0.5, None, None) == "50.0%"


def test_a_long_list_is_cut() -> None:
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(1000), most=2) == "0, 1 and 998 more"


def test_columns_are_aligned_and_an_empty_table_is_empty() -> None:
    assert aligned([("a", "1"), ("long", "2")]) == "a     1\nlong  2"
    assert aligned([]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (None, "null"), (4e-4, "4e-4"), (0.9, "0.9"), (["a", 1], "[a,1]"), ({"a": 0.5}, "{a:0.5}")],
)
def test_a_setting_is_written_as_on_a_command_line(value: object, text: str) -> None:
    assert setting(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_that_is_written_is_read_as_the_same(value: float) -> None:
    assert float(setting(value)) == value


@given(st.booleans() | st.integers() | st.none())
def test_yaml_reads_the_setting_back(value: object) -> None:
    assert OmegaConf.create(f"value: {setting(value)}").value == value
