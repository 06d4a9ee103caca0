"""Remote shards: whatever a store does, the bytes are right or the run stops; the order never changes."""

import itertools
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from clip_lightning.config.schema import CacheConfig, DataConfig
from clip_lightning.data import index as index_command
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.layouts.layout import build_layout
from clip_lightning.data.layouts.tar import Tars
from clip_lightning.data.layouts.tar_index import ShardIndex, index_tar
from clip_lightning.data.remote.cache import ShardCache
from clip_lightning.data.remote.ranged_file import RangedFile
from clip_lightning.data.sources import Source, any_on_network, list_sources
from clip_lightning.errors import DataError
from tests.data.test_loader import steps
from tests.support.small_data import jpeg, write_tar

MakeModule = Callable[..., ContrastiveDataModule]


class FlakyFile:
    """A file that gives little at a time, or fails."""

    def __init__(self, file: Any, fail: Callable[[], None]) -> None:
        self.file, self.fail = file, fail
        self.seek, self.close = file.seek, file.close

    def read(self, size: int) -> bytes:
        self.fail()
        return bytes(self.file.read(min(size, 2000)))


class FlakyStore(LocalFileSystem):
    """A store on this disk whose reads fail one time in three, halfway through now and then."""

    protocol = "flaky"
    local_file = False
    chance = random.Random(0)
    failures = itertools.count()

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self._fail()
        return super().info(path, **kwargs)

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._fail()
        return FlakyFile(super().open(path, mode), self._fail)

    @classmethod
    def _fail(cls) -> None:
        if cls.chance.random() < 1 / 3:
            next(cls.failures)
            raise ConnectionResetError("the store hung up")


fsspec.register_implementation("flaky", FlakyStore, clobber=True)


@pytest.fixture
def remote(shards: Path) -> Iterator[str]:
    """The shards in fsspec's memory."""
    store = MemoryFileSystem()
    for path in shards.glob("*.tar"):
        store.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def cache_config(folder: Path, **changes: object) -> CacheConfig:
    config = CacheConfig(folder=str(folder))
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def tars(url: str, folder: Path, **changes: object) -> Tars:
    config = DataConfig(name="test", kind="webdataset", path=url, cache=cache_config(folder, **changes))
    built = build_layout(config)
    assert isinstance(built, Tars)
    return built


def kept(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in (folder / "shards").glob("*.tar"))


@pytest.mark.slow
def test_a_remote_run_is_the_local_run(module: MakeModule, shards: Path, remote: str, tmp_path: Path) -> None:
    here = steps(module(shards, window_shards=2), 0, 10, 1, 0)
    there = module(remote, window_shards=2, cache=cache_config(tmp_path / "cache"))
    assert steps(there, 0, 10, 2, 1) == here
    assert there.fingerprint == module(shards).fingerprint
    batches = list(there.train_dataloader())
    assert len(batches) == 50


def test_a_cache_smaller_than_the_data_throws_out_the_least_recently_used(
    module: MakeModule, shards: Path, remote: str, tmp_path: Path
) -> None:
    largest = max(path.stat().st_size for path in shards.glob("*.tar"))
    config = cache_config(tmp_path / "cache", max_gib=largest * 1.3 / 2**30)
    there = module(remote, window_shards=1, cache=config, total_samples=120)
    rows = steps(there, 0, 15, 1, 0)
    assert rows == steps(module(shards, window_shards=1), 0, 15, 1, 0)
    assert sum(path.stat().st_size for path in (tmp_path / "cache/shards").glob("*")) <= largest * 1.3
    with pytest.raises(DataError, match=r"data\.cache\.max_gib=.* is too small: .* alone takes"):
        tars(remote, tmp_path / "other", max_gib=1e-6)


def test_a_store_that_fails_one_read_in_three_gives_the_right_bytes(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ShardCache(cache_config(tmp_path / "cache", retries=30), pause=lambda seconds: None)
    before = next(FlakyStore.failures)
    for path in sorted(shards.glob("*.tar")):
        source = Source(f"flaky://{path}", path.stat().st_size, str(path.stat().st_mtime))
        descriptor = cache.open(source)
        assert os.pread(descriptor, source.size + 1, 0) == path.read_bytes()
        os.close(descriptor)
    assert next(FlakyStore.failures) - before > 10
    assert "ConnectionResetError('the store hung up'); trying again in 0.5 s (1 of 30)" in caplog.text
    assert not list((tmp_path / "cache/shards").glob("*.part"))


def test_pauses_grow_and_end_in_a_sentence(tmp_path: Path, shards: Path) -> None:
    class DeadStore(FlakyStore):
        protocol = "dead"

        @classmethod
        def _fail(cls) -> None:
            raise TimeoutError("no answer")

    fsspec.register_implementation("dead", DeadStore, clobber=True)
    pauses: list[float] = []
    cache = ShardCache(cache_config(tmp_path / "cache", retries=9), pause=pauses.append)
    with pytest.raises(DataError, match=r"10 tries failed, the last with TimeoutError\('no answer'\)"):
        cache.open(Source(f"dead://{shards}/00000.tar", 100, ""))
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_shard_that_changed_in_its_store_is_not_mixed_with_the_old_one(
    remote: str, shards: Path, tmp_path: Path
) -> None:
    found = tars(remote, tmp_path / "cache")
    for path in (tmp_path / "cache/shards").glob("*.tar"):
        path.unlink()
    MemoryFileSystem().pipe("/bucket/00003.tar", (shards / "00001.tar").read_bytes())
    with pytest.raises(DataError, match=r"00003\.tar has changed"):
        found.read(25)
    MemoryFileSystem().rm("/bucket/00004.tar")
    with pytest.raises(DataError, match=r"00004\.tar cannot be read"):
        found.read(55)


def test_remote_shards_are_indexed_by_command(remote: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert index_command.main([remote, "--index-folder", str(tmp_path / "cache")]) == 0
    assert "59 samples in 5 shards; left out: none" in capsys.readouterr().out
    assert len(list((tmp_path / "cache/index").glob("*.idx"))) == 5


def test_ranks_of_a_launcher_share_the_shards_to_index(
    remote: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, (num_samples, num_shards) in enumerate([(17, 3), (42, 2)]):
        monkeypatch.setenv("RANK", str(rank))
        assert index_command.main([remote, "--index-folder", str(tmp_path / "cache")]) == 0
        printed = capsys.readouterr().out
        assert f"{num_samples} samples in {num_shards} shards (share {rank} of 2)" in printed
    assert len(list((tmp_path / "cache/index").glob("*.idx"))) == 5


def test_sidecars_beside_remote_shards_are_taken(remote: str, shards: Path, tmp_path: Path) -> None:
    assert index_command.main([str(shards)]) == 0
    for path in shards.glob("*.idx"):
        MemoryFileSystem().pipe(f"/bucket/{path.name}", path.read_bytes())
    MemoryFileSystem().pipe("/bucket/00002.tar.idx", (shards / "00001.tar.idx").read_bytes())  # of another size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip_lightning.data.layouts.index.index_tar", _index_tar_of("00002.tar"))
        found = tars(remote, tmp_path / "cache")
    assert found.num_samples == 59
    assert found.read(20).image == jpeg(20)
    assert kept(tmp_path / "cache") == ["00003.tar"]
    assert tars(remote, tmp_path / "cache").fingerprint() == found.fingerprint()


def _index_tar_of(name: str) -> Callable[..., ShardIndex]:
    """Indexes one shard, and fails for others."""

    def index(file: RangedFile, *keys: list[str]) -> ShardIndex:
        assert file.source.name == name
        return index_tar(file, *keys)

    return index


def test_indexing_reads_headers_by_ranges_and_not_pixels(tmp_path: Path) -> None:
    members = [
        (f"{k}.{end}", content) for k in range(8) for end, content in (("jpg", jpeg(k) + bytes(1 << 20)), ("txt", b"x"))
    ]
    content = write_tar(tmp_path / "0.tar", members).read_bytes()
    MemoryFileSystem().pipe("/large/0.tar", content)
    (source,) = list_sources("memory://large", ".tar")
    file = RangedFile(source, ShardCache(cache_config(tmp_path / "cache")))
    found = index_tar(file, ["jpg"], ["txt"])
    assert found.digest == index_tar(tmp_path / "0.tar", ["jpg"], ["txt"]).digest
    assert found.records.tobytes() == index_tar(tmp_path / "0.tar", ["jpg"], ["txt"]).records.tobytes()
    assert file.num_bytes < len(content) / 2
    assert file.num_requests < 20
    MemoryFileSystem().rm("/large", recursive=True)


def test_sidecars_in_the_cache_make_the_second_start_need_no_download(remote: str, tmp_path: Path) -> None:
    tars(remote, tmp_path / "cache")
    for path in (tmp_path / "cache/shards").glob("*.tar"):
        path.unlink()
    found = tars(remote, tmp_path / "cache")
    assert kept(tmp_path / "cache") == []
    assert found.read(19).image == jpeg(19)
    assert kept(tmp_path / "cache") == ["00002.tar"]


def test_shards_are_fetched_ahead_to_the_end_of_the_next_window(
    module: MakeModule, remote: str, tmp_path: Path
) -> None:
    made = module(
        remote, window_shards=1, global_batch=1, total_samples=20, cache=cache_config(tmp_path / "cache", ahead=2)
    )
    for path in (tmp_path / "cache/shards").glob("*.tar"):
        path.unlink()
    made.layout._open.clear()
    needed = [f"{shard:05d}.tar" for _, shard in itertools.islice(made.order.shards_from(0), 2)]
    batches = iter(made.train_dataloader())
    next(batches)
    deadline = 200
    while not set(needed) <= set(kept(tmp_path / "cache")) and (deadline := deadline - 1):
        time.sleep(0.02)
    assert set(needed) <= set(kept(tmp_path / "cache"))


def _read_all(url: str, folder: Path, results: Any) -> None:
    found = tars(url, folder)
    results.put([sample.image == jpeg(k) for k, sample in enumerate(found.read_many(np.arange(59)))])


def test_two_jobs_may_share_one_cache(shards: Path, tmp_path: Path) -> None:
    results: Any = multiprocessing.get_context("fork").Queue()
    url = f"local://{shards}"
    jobs = [
        multiprocessing.get_context("fork").Process(target=_read_all, args=(url, tmp_path / "cache", results))
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    assert all(all(results.get(timeout=300)) for _ in jobs)
    for job in jobs:
        job.join()
    assert len(kept(tmp_path / "cache")) == 5


def _fill_up(url: str, folder: Path, results: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        ShardCache(cache_config(folder)).open(list_sources(url, ".tar")[3])
    except DataError as error:
        results.put(str(error))


def test_a_full_disk_is_reported_in_a_sentence(shards: Path, tmp_path: Path) -> None:
    results: Any = multiprocessing.get_context("fork").Queue()
    job = multiprocessing.get_context("fork").Process(
        target=_fill_up, args=(f"local://{shards}", tmp_path / "cache", results)
    )
    job.start()
    assert "cannot be written (File too large); make room there, or set data.cache.folder" in results.get(timeout=300)
    job.join()
    assert kept(tmp_path / "cache") == []
    assert not list((tmp_path / "cache/shards").glob("*.part"))


def test_a_store_without_its_package_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path=gs://bucket/x: .*gcsfs"):
        list_sources("gs://bucket/x", ".tar")
    with pytest.raises(DataError, match="Protocol not known: nostore"):
        list_sources("nostore://x", ".tar")
    with pytest.raises(DataError, match="does not exist"):
        list_sources("memory://nowhere", ".tar")


def test_remote_patterns(remote: str) -> None:
    assert [source.name for source in list_sources("memory://bucket/0000[12].tar", ".tar")] == [
        "00001.tar",
        "00002.tar",
    ]
    assert [source.name for source in list_sources("memory://bucket/{00003..00004}.tar", ".tar")] == [
        "00003.tar",
        "00004.tar",
    ]


def test_remote_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"jpg": [jpeg(k) for k in range(6)], "txt": list("abcdef")}), tmp_path / "t.parquet", row_group_size=4
    )
    MemoryFileSystem().pipe("/tables/t.parquet", (tmp_path / "t.parquet").read_bytes())
    config = DataConfig(name="t", kind="parquet", path="memory://tables", cache=cache_config(tmp_path / "cache"))
    assert build_layout(config).read(5) == (jpeg(5), ["f"])
    MemoryFileSystem().rm("/tables", recursive=True)


def test_a_network_mount_is_recognised_by_the_type_of_its_file_system(tmp_path: Path) -> None:
    (tmp_path / "a b/c").mkdir(parents=True)
    mounts = tmp_path / "mounts"
    place = str(tmp_path / "a b").replace(" ", "\\040")
    local, below = Source(str(tmp_path / "0.tar"), 1, ""), Source(str(tmp_path / "a b/c/0.tar"), 1, "")
    for kind, is_network in (("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False), ("xfs", False)):
        mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {place} {kind} rw 0 0\n")
        assert any_on_network([below], mounts) == is_network
        assert not any_on_network([local], mounts)
    assert not any_on_network([below], tmp_path / "missing")
