"""The phase of a sample is a pure function of its position, and changes between two steps only."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.config import compose, duration, identity
from clip_lightning.config.phases import Phase, phase_at, phase_lengths, phases_of, problems
from clip_lightning.config.schema import Config, PhaseConfig
from clip_lightning.errors import UserError

BATCH = 128


@pytest.fixture(scope="module")
def base() -> Config:
    config: Config = compose.load("train", [f"compute.global_batch={BATCH}"])
    return config


def with_phases(base: Config, *phases: PhaseConfig) -> Config:
    config = copy.deepcopy(base)
    config.compute.phases = list(phases)
    return config


@settings(deadline=None)
@given(st.sets(st.integers(0, 199), max_size=5), st.integers(0, 200 * BATCH - 1))
def test_phases_tile_a_run_in_whole_steps(base: Config, steps: set[int], position: int) -> None:
    listed = [PhaseConfig(f"{step} steps", image_size=8 * (1 + k % 2)) for k, step in enumerate(sorted(steps))]
    phases = phases_of(with_phases(base, *listed), total_samples=200 * BATCH, epoch_samples=None)
    assert [phase.start for phase in phases] == sorted({0} | {step * BATCH for step in steps})
    assert sum(phase_lengths(phases, 200 * BATCH)) == 200 * BATCH
    found, first = phase_at(phases, position), position // BATCH * BATCH
    assert {phase_at(phases, first), phase_at(phases, first + BATCH - 1)} == {found}
    assert found.start <= position


def test_what_a_phase_does_not_set_is_the_models_own(base: Config) -> None:
    listed = [PhaseConfig("0", 16, 8), PhaseConfig("2 steps", context_length=16), PhaseConfig("0.5")]
    found = phases_of(with_phases(base, *listed), total_samples=10 * BATCH, epoch_samples=None)
    assert found == [Phase(0, 16, 8, 0.0), Phase(256, 32, 16, 0.0), Phase(640, 32, 32, 0.0)]


def test_before_the_first_phase_the_models_own_values_apply(base: Config) -> None:
    listed = with_phases(base, PhaseConfig("1 epochs", image_size=16))
    found = phases_of(listed, total_samples=5000 * BATCH, epoch_samples=500)
    assert found == [Phase(0, 32, 32, 0.0), Phase(512, 16, 32, 0.0)]
    assert phases_of(base, total_samples=BATCH, epoch_samples=None) == [Phase(0, 32, 32, 0.0)]


def test_phases_are_science(base: Config) -> None:
    assert identity.science_hash(with_phases(base, PhaseConfig("50%", 16))) != identity.science_hash(base)
    assert identity.diff(
        identity.science(base), identity.science(with_phases(base, PhaseConfig("50%", 16)))
    )[0].startswith("compute.phases: [] -> ")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "small"), [("flip_b16", (224, 32, 0.5)), ("clipa_b16", (112, 16, 0.0))])
def test_the_published_recipes_end_in_full(name: str, small: tuple[int, int, float]) -> None:
    config: Config = compose.load("train", [f"experiment={name}"], check=False)
    assert list(problems(config)) == []
    batch, pairs = config.compute.global_batch, config.data.num_samples
    total = duration.to_samples(config.compute.duration, global_batch=batch, epoch_samples=pairs, total_samples=None)
    first, last = phases_of(config, total_samples=total, epoch_samples=pairs)
    assert first == (0, *small)
    assert last[1:] == (224, config.model.text.context_length, 0.0)
    assert total - last.start == pytest.approx(131e6, rel=0.01)


@pytest.mark.slow
def test_a_command_line_names_phases() -> None:
    config: Config = compose.load("train", ["compute.phases=[{start:400 steps,image_size:16},{start:80%}]"])
    assert config.compute.phases == [PhaseConfig("400 steps", 16), PhaseConfig("80%")]
    with pytest.raises(UserError, match=r"must be a list like \[\{start:\.\.\.,image_size:"):
        compose.load("train", ["compute.phases=[{start:80%,imagesize:16}]"])
