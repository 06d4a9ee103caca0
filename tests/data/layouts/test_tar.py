"""Tars: what the index finds and what it leaves out; members are read in place."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from clip_lightning.config.schema import DataConfig
from clip_lightning.data import index as index_command
from clip_lightning.data.bad_samples import BadSampleLog
from clip_lightning.data.layouts import index
from clip_lightning.data.layouts.layout import build_layout, causes, damaged_shards, num_lost
from clip_lightning.data.layouts.tar import Tars
from clip_lightning.data.layouts.tar_index import index_tar
from clip_lightning.errors import DataError
from tests.support.small_data import jpeg, pairs, write_tar

KEYS = (["jpg", "jpeg", "png", "webp"], ["txt", "caption"])


def layout(path: Path, **changes: object) -> Tars:
    config = DataConfig(name="test", kind="webdataset", path=str(path), how_to_get="get it somewhere")
    for name, value in changes.items():
        setattr(config, name, value)
    built = build_layout(config)
    assert isinstance(built, Tars)
    return built


def causes_in(path: Path) -> list[tuple[str, str]]:
    return [(problem.name, problem.cause) for problem in index_tar(path, *KEYS).problems]


def test_samples_are_read_in_place(shards: Path) -> None:
    tars = layout(shards)
    assert tars.shard_sizes.tolist() == [7, 12, 1, 30, 9]
    for sample_id in (0, 6, 7, 19, 20, 58):
        sample = tars.read(sample_id)
        assert sample.image == jpeg(sample_id)
        assert sample.captions == [f"picture number {sample_id}"]
    mixed = np.array([58, 0, 20, 19, 1, 58])
    assert [sample.captions[0].split()[-1] for sample in tars.read_many(mixed)] == [str(k) for k in mixed]
    assert tars.name_of(19) == (str(shards / "00002.tar"), "00019.jpg", "", 1, "")


def test_a_tar_cut_anywhere_gives_the_samples_before_the_cut(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", pairs(0, 4)).read_bytes()
    ends = [
        record["caption_offset"] + record["caption_size"] for record in index_tar(tmp_path / "whole.tar", *KEYS).records
    ]
    end_of_members = int(ends[-1] + 511) // 512 * 512
    for cut in range(0, len(whole) + 1, 512):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        found = index_tar(tmp_path / "cut.tar", *KEYS)
        assert len(found.records) == sum(end <= cut for end in ends)
        found_causes = {problem.cause for problem in found.problems}
        if cut > end_of_members:
            assert not found_causes
        else:
            assert ("truncated shard" if cut else "empty shard") in found_causes


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_understood(tmp_path: Path, kind: int) -> None:
    folder = "/".join(["a" * 60, "b" * 60])
    names = [f"{folder}/c.jpg", f"{folder}/c.txt"]
    if kind != tarfile.USTAR_FORMAT:
        names += [f"{'d' * 150}ü.jpg", f"{'d' * 150}ü.txt"]
    members = [(name, jpeg(1) if name.endswith("jpg") else b"text") for name in names]
    found = index_tar(write_tar(tmp_path / "0.tar", members, kind), *KEYS)
    assert len(found.records) == len(names) // 2
    assert not found.problems


def test_names_that_end_a_folder_in_a_dot_keep_their_key(tmp_path: Path) -> None:
    members = [("v1.0/a.jpg", jpeg(0)), ("v1.0/a.txt", b"one"), ("v1.0/b.JPG", jpeg(1)), ("v1.0/b.txt", b"two")]
    assert len(index_tar(write_tar(tmp_path / "0.tar", members), *KEYS).records) == 2


def test_members_of_a_key_may_be_anywhere(tmp_path: Path) -> None:
    members = pairs(0, 5)
    path = write_tar(tmp_path / "0.tar", members[::2] + members[1::2])
    tars = layout(path)
    assert [sample.captions[0] for sample in tars.read_many(np.arange(5))] == [f"picture number {k}" for k in range(5)]


def test_captions_in_json_are_found_by_key_and_may_be_several(tmp_path: Path) -> None:
    def document(**content: object) -> bytes:
        return json.dumps(content).encode()

    members = [
        ("a.jpg", jpeg(0)), ("a.json", document(caption=["one", "two"], url="x")),
        ("b.jpg", jpeg(1)), ("b.json", document(caption="three")), ("b.txt", b"from the text"),
        ("c.jpg", jpeg(2)), ("c.json", document(url="x")),
        ("d.jpg", jpeg(3)), ("d.json", b"{no json"),
        ("e.jpg", jpeg(4)), ("e.json", document(caption=" ")),
        ("f.jpg", jpeg(5)), ("f.json", b"[1]"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "0.tar", members)
    tars = layout(path)
    assert [sample.captions for sample in tars.read_many(np.arange(2))] == [["one", "two"], ["from the text"]]
    found_causes = {problem.name: problem.cause for problem in tars.problems}
    assert found_causes == {"c": "missing caption", "d": "damaged json", "e": "empty caption", "f": "damaged json"}
    assert layout(path, caption_keys=["caption", "txt"]).captions(1) == ["three"]


def test_what_cannot_be_trained_on_is_listed_by_cause(tmp_path: Path) -> None:
    members = [
        *pairs(0, 2),
        ("html.jpg", b"<html>404 Not Found</html>" * 20), ("html.txt", b"a page"),
        ("zero.jpg", b""), ("zero.txt", b"nothing"),
        ("latin.jpg", jpeg(3)), ("latin.txt", "café".encode("latin-1")),
        ("blank.jpg", jpeg(4)), ("blank.txt", b" \n"),
        ("alone.jpg", jpeg(5)),
        ("words.txt", b"no picture"),
        ("head.jpg", jpeg(6)[:40]), ("head.txt", b"cut in its header"),
        ("00001.jpg", jpeg(7)), ("00001.txt", b"again"),
    ]  # fmt: skip
    tars = layout(write_tar(tmp_path / "0.tar", members))
    found_causes = sorted((problem.name, problem.cause) for problem in tars.problems)
    assert found_causes == [
        ("00001.jpg", "duplicate key"),
        ("00001.txt", "duplicate key"),
        ("alone", "missing caption"),
        ("blank", "empty caption"),
        ("head", "damaged image"),
        ("html", "not an image"),
        ("latin", "caption is not UTF-8"),
        ("words", "missing image"),
        ("zero", "empty image"),
    ]
    assert tars.num_samples == 2
    assert tars.read(1).image == jpeg(1)


def test_links_and_sparse_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in pairs(0, 1):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind in (("soft.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("tty.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("hole.jpg")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        tar.addfile(info)
    found = index_tar(path, *KEYS)
    assert [(problem.name, problem.cause) for problem in found.problems] == [
        ("soft.jpg", "link"),
        ("hard.jpg", "link"),
        ("tty.jpg", "device"),
        ("hole.jpg", "sparse member"),
    ]
    assert len(found.records) == 1


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty shard"),
        (b"\x1f\x8b" + b"x" * 2000, "compressed shard (unpack it to .tar)"),
        (b"this is a text and no tar" * 100, "not a tar"),
    ],
)
def test_a_file_that_is_not_a_tar_is_reported(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"holds no usable sample \({cause.split('(')[0]}".strip()):
        layout(tmp_path)


def test_garbage_after_good_members_keeps_those(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(0, 3))
    content = bytearray(path.read_bytes())
    content[int(index_tar(path, *KEYS).records[2]["image_offset"]) - 500] ^= 0xFF
    path.write_bytes(content)
    found = index_tar(path, *KEYS)
    assert len(found.records) == 2
    assert [(problem.name, problem.cause) for problem in found.problems] == [("", "damaged shard")]


def test_missing_data_is_reported_with_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist\. get it somewhere"):
        layout(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no \.tar file\. get it somewhere"):
        layout(tmp_path)
    with pytest.raises(DataError, match="none is run"):
        layout(Path("pipe:cat x.tar"))


def test_braces_and_stars_name_shards(shards: Path) -> None:
    assert layout(shards / "{00000..00002}.tar").shard_sizes.tolist() == [7, 12, 1]
    assert layout(shards / "{00003,00000}.tar").shard_sizes.tolist() == [30, 7]
    assert layout(shards / "0000[34].tar").shard_sizes.tolist() == [30, 9]
    with pytest.raises(DataError, match=r"3 of 3 files do not exist \(00007\.tar"):
        layout(shards / "{00007..00009}.tar")


def test_sidecars_are_written_once_and_again_when_a_shard_changes(shards: Path) -> None:
    layout(shards)
    sidecars = sorted(shards.glob("*.idx"))
    assert len(sidecars) == 5
    times = [sidecar.stat().st_mtime_ns for sidecar in sidecars]
    fingerprint = layout(shards).fingerprint()
    assert [sidecar.stat().st_mtime_ns for sidecar in sidecars] == times
    write_tar(shards / "00001.tar", pairs(100, 3))
    changed = layout(shards)
    assert changed.shard_sizes.tolist() == [7, 3, 1, 30, 9]
    assert changed.fingerprint() != fingerprint
    assert [sidecar.stat().st_mtime_ns == old for sidecar, old in zip(sidecars, times, strict=True)].count(False) == 1


@pytest.mark.parametrize("damage", [b"", b"garbage", b"CLIPIDX2" + b"\xff" * 8])
def test_a_damaged_sidecar_is_written_again(shards: Path, damage: bytes) -> None:
    layout(shards)
    (shards / "00000.tar.idx").write_bytes(damage)
    assert layout(shards).read(3).captions == ["picture number 3"]


def test_a_read_only_folder_has_its_sidecars_elsewhere(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shards.chmod(0o555)
    assert layout(shards).num_samples == 59
    assert not list(shards.glob("*.idx"))
    assert len(list((tmp_path / "home/.cache/clip_lightning/index").glob("*.idx"))) == 5
    assert layout(shards, index_folder=str(tmp_path / "own")).num_samples == 59
    assert len(list((tmp_path / "own/index").glob("*.idx"))) == 5
    shards.chmod(0o755)


def test_other_keys_have_sidecars_of_their_own(tmp_path: Path) -> None:
    members = [("a.jpg", jpeg(0)), ("a.txt", b"one"), ("a.cap", b"two")]
    path = write_tar(tmp_path / "0.tar", members)
    assert layout(path).captions(0) == ["one"]
    assert layout(path, caption_keys=["cap"]).captions(0) == ["two"]
    assert layout(path).captions(0) == ["one"]
    assert len(list(tmp_path.glob("*.idx"))) == 2


def test_duplicate_keys_across_shards_are_two_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", jpeg(0)), ("a.txt", b"one")])
    write_tar(tmp_path / "1.tar", [("a.jpg", jpeg(1)), ("a.txt", b"two")])
    tars = layout(tmp_path)
    assert [tars.read(k).captions[0] for k in range(2)] == ["one", "two"]
    assert not tars.problems


def test_a_shard_replaced_while_training_stops_the_run_with_its_name(shards: Path) -> None:
    tars = layout(shards)
    tars.read(0)
    write_tar(shards / "00003.tar", pairs(500, 30))
    os.utime(shards / "00003.tar", ns=(time.time_ns(), time.time_ns() + 10**9))
    with pytest.raises(DataError, match=r"00003\.tar has changed since it was indexed"):
        tars.read(25)
    (shards / "00004.tar").unlink()
    with pytest.raises(DataError, match=r"00004\.tar can no longer be opened"):
        tars.read(55)


def test_a_shard_cut_while_training_stops_the_run(shards: Path) -> None:
    tars = layout(shards)
    tars.read(30)
    os.truncate(shards / "00003.tar", 4096)
    with pytest.raises(DataError, match="has changed"):
        tars.read(40)


@pytest.mark.slow
def test_the_index_runs_as_a_command_in_parallel(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(index, "_SMALL", 0)
    assert index_command.main([str(shards), "--workers", "2"]) == 0
    assert "59 samples in 5 shards; left out: none" in capsys.readouterr().out
    assert index_command.main([str(shards / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_the_command_line_lists_what_is_left_out(tmp_path: Path, root: Path) -> None:
    write_tar(tmp_path / "0.tar", [*pairs(0, 2), ("bad.jpg", jpeg(5))])
    command = [sys.executable, "-m", "clip_lightning.data.index", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    assert "2 samples in 1 shards; left out: missing caption: 1" in printed
    assert "bad: missing caption" in printed


def test_keys_without_a_known_extension_are_counted_with_an_example(tmp_path: Path) -> None:
    members = [(f"ok{k}.{kind}", content) for k in range(20) for kind, content in (("jpg", jpeg(k)), ("txt", b"x"))]
    members += [(f"Track {k}.0.{kind}", b"x") for k in range(10) for kind in ("jpg", "txt")]
    members += [("README.md", b"x"), (".DS_Store", b"x"), ("__MACOSX/._a.jpg", b"x")]
    write_tar(tmp_path / "0.tar", members)
    found = layout(tmp_path)
    assert found.num_samples == 20
    assert num_lost(found.problems) == 10
    (problem,) = (problem for problem in found.problems if problem.num)
    assert problem.cause == "unknown extension"
    assert problem.hint == "10 keys have only '.0.jpg', '.0.txt'; see data.image_keys"
    assert {one.name for one in found.problems if not one.num} == {"README.md", ".DS_Store"}
    with pytest.raises(
        DataError, match=r"10 of 30 samples are bad \(unknown extension: 10 \(10 keys have only '\.0\.jpg'"
    ):
        BadSampleLog(found, 0.01)
    assert BadSampleLog(found, 0.5).counts() == {"unknown extension": 10}


@pytest.mark.parametrize(
    ("members", "hint"),
    [
        ([("a.tiff", b"x"), ("a.txt", b"x")], "found '.tiff'; convert them to JPEG or PNG"),
        ([("a.tif", b"x"), ("a.cap", b"x")], "1 key has only '.tif', '.cap'; convert them to JPEG or PNG"),
        ([("a.mp3", b"x")], "1 key has only '.mp3'; see data.image_keys"),
        ([("a.bmp", b"x"), ("a.txt", b"x")], "found '.bmp'; see data.image_keys"),
        ([("a.jpg", jpeg(0)), ("a.cap", b"x")], "'.cap'; see data.caption_keys"),
        ([("a.jpg", jpeg(0)), ("a.json", b'{"alt": "x", "n": 3}')], "the .json has 'alt'; see data.caption_keys"),
    ],
)
def test_no_usable_sample_names_what_was_found(tmp_path: Path, members: list[tuple[str, bytes]], hint: str) -> None:
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=rf"holds no usable sample \(.*: 1.* \({re.escape(hint)}\)"):
        layout(tmp_path)


def four_shards(folder: Path) -> list[Path]:
    return [write_tar(folder / f"{k:05d}.tar", pairs(100 * k, 30)) for k in range(4)]


def test_a_damaged_shard_counts_as_the_samples_that_are_lost(tmp_path: Path) -> None:
    paths = four_shards(tmp_path)
    content = bytearray(paths[1].read_bytes())
    content[int(index_tar(paths[1], *KEYS).records[18]["image_offset"]) - 500] ^= 0xFF
    paths[1].write_bytes(content)
    found = layout(tmp_path)
    assert found.num_samples == 108
    assert 10 <= num_lost(found.problems) <= 14
    assert damaged_shards(found.problems)[0].startswith(f"{paths[1]}: damaged shard, about 1")
    with pytest.raises(DataError, match=r"00001\.tar"):
        BadSampleLog(found, 0.01)


@pytest.mark.parametrize("damage", ["gzipped", "cut", "empty", "page"])
def test_a_shard_that_ends_early_is_estimated_by_the_others(tmp_path: Path, damage: str) -> None:
    paths = four_shards(tmp_path)
    content = paths[2].read_bytes()
    cut = int(index_tar(paths[2], *KEYS).records[10]["image_offset"])
    damaged = {"gzipped": gzip.compress(content), "cut": content[:cut], "empty": b"", "page": b"<html>404</html>" * 99}
    paths[2].write_bytes(damaged[damage])
    found = layout(tmp_path)
    assert found.num_samples + num_lost(found.problems) == 120
    assert [problem.shard for problem in found.problems if not problem.name] == [str(paths[2])]
    with pytest.raises(DataError, match="max_bad_share"):
        BadSampleLog(found, 0.01)


def test_all_missing_shards_of_a_range_are_listed(shards: Path) -> None:
    with pytest.raises(DataError) as caught:
        layout(shards / "{00003..00030}.tar")
    assert "26 of 28 files do not exist" in str(caught.value)
    assert "00005.tar" in str(caught.value)


def test_compressed_tars_and_tars_in_sub_folders_are_counted(tmp_path: Path) -> None:
    paths = four_shards(tmp_path / "data")
    for name in ("00004.tar.gz", "00005.tgz", "00000.tar.gz"):
        (tmp_path / "data" / name).write_bytes(gzip.compress(paths[0].read_bytes()))
    write_tar(tmp_path / "data/val/00000.tar", pairs(0, 3))
    found = layout(tmp_path / "data")
    assert found.num_samples == 120
    assert [(Path(one.shard).name, one.name, one.num) for one in found.problems] == [
        ("00004.tar.gz", "", 30),
        ("00005.tgz", "", 30),
        ("data", "val/00000.tar", 0),
    ]
    assert "file in a sub-folder: 1 files, no samples" in causes(found.problems)
    assert not layout(tmp_path / "data/{00000..00003}.tar").problems
