"""Bad samples: replaced alike by all, counted once by cause, written down, and too many of them stop the run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_lightning.data.bad_samples import BadSampleLog
from clip_lightning.data.batches import Bad
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.errors import DataError
from tests.data.test_loader import rows_of, steps
from tests.support.small_data import jpeg, pairs, write_tar

MakeModule = Callable[..., ContrastiveDataModule]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """300 samples, of which 5 are cut, 2 of those in one shard of 3; and one that the index leaves out."""
    members = [pairs(0, 200), pairs(200, 3), pairs(203, 97)]
    bad = {17: 0, 100: 0, 200: 1, 201: 1, 250: 2}
    for number, shard in bad.items():
        at = members[shard].index((f"{number:05d}.jpg", jpeg(number)))
        members[shard][at] = (f"{number:05d}.jpg", jpeg(number, 100, 100)[:-400])
    members[0].append(("alone.jpg", jpeg(5)))
    for number, shard in enumerate(members):
        write_tar(tmp_path / "damaged" / f"{number}.tar", shard)
    return tmp_path / "damaged"


@pytest.mark.slow
def test_whoever_meets_a_bad_sample_takes_the_same_other_one(module: MakeModule, damaged: Path) -> None:
    whole = steps(module(damaged, max_bad_share=0.1), 0, 40, 1, 0)
    assert not {17, 100, 200, 201, 250} & {row[1] for row in whole}
    assert (
        steps(module(damaged, max_bad_share=0.1), 0, 13, 4, 2) + steps(module(damaged, max_bad_share=0.1), 13, 40, 2, 0)
        == whole
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_counted_once_by_cause_and_written_down(
    module: MakeModule, damaged: Path, tmp_path: Path, workers: int
) -> None:
    made = module(damaged, max_bad_share=0.1, workers=workers, total_samples=904)
    assert made.bad_samples == {"missing caption": 1}
    assert sum(len(rows_of(batch)) for batch in made.train_dataloader()) == 904
    assert made.bad_samples == {"missing caption": 1, "truncated image": 5}
    made.write_bad_samples(tmp_path / "bad_samples.jsonl")
    made.write_bad_samples(tmp_path / "bad_samples.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted((Path(row["shard"]).name, row["name"], row["cause"]) for row in rows) == [
        ("0.tar", "00017.jpg", "truncated image"),
        ("0.tar", "00100.jpg", "truncated image"),
        ("0.tar", "alone", "missing caption"),
        ("1.tar", "00200.jpg", "truncated image"),
        ("1.tar", "00201.jpg", "truncated image"),
        ("2.tar", "00250.jpg", "truncated image"),
    ]
    assert "truncated" in rows[-1]["detail"]


def test_ranks_that_meet_the_same_bad_sample_count_it_once(
    module: MakeModule, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = [BadSampleLog(module(damaged).layout, 0.1) for _ in range(2)]
    for log, met in zip(logs, ([17, 100, 200], [100, 17, 250]), strict=True):
        log.note([Bad(sample_id, "truncated image", "") for sample_id in met], 300)
    new = [[(bad.sample_id, bad.cause) for bad in log.met.values()] for log in logs]
    monkeypatch.setattr("clip_lightning.data.bad_samples.exchange", lambda own: new)
    for log in logs:
        assert log.num_new == 3
        log.exchange()
        assert log.num_new == 0
        assert log.counts() == {"missing caption": 1, "truncated image": 4}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_with_the_count(module: MakeModule, damaged: Path, workers: int) -> None:
    made = module(damaged, workers=workers)
    with pytest.raises(DataError) as caught:
        list(made.train_dataloader())
    (sentence,) = caught.value.problems
    assert sentence.startswith(
        "5 of 301 samples are bad (truncated image: 4, missing caption: 1; the first is alone in "
    )
    assert "more than data.max_bad_share=0.01 allows" in sentence


def test_too_many_found_by_the_index_stop_before_the_first_step(module: MakeModule, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*pairs(0, 50), ("alone.jpg", jpeg(5)), ("b.jpg", b""), ("b.txt", b"x")])
    with pytest.raises(DataError, match=r"2 of 52 samples are bad \(missing caption: 1, empty image: 1"):
        module(tmp_path)


def test_a_shard_without_captions_is_reported_and_does_not_hang(module: MakeModule, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(f"{k}.jpg", jpeg(k)) for k in range(20)])
    with pytest.raises(DataError, match=r"holds no usable sample \(missing caption: 20\)"):
        module(tmp_path)


def test_data_that_is_all_bad_ends(module: MakeModule, tmp_path: Path) -> None:
    members = [(f"{k}.jpg", jpeg(k, 100, 100)[:-400]) for k in range(20)] + [(f"{k}.txt", b"x") for k in range(20)]
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match="64 samples in a row are bad"):
        list(module(tmp_path, max_bad_share=1.0).train_dataloader())
