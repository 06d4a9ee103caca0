"""The walk over a tar's headers: always ends, never leaves the file, and finds what Python's tarfile finds."""

import io
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_lightning.data.layouts.tar_headers import BLOCK, ChunkedFile, DamagedTarError, members
from clip_lightning.data.layouts.tar_index import index_tar
from tests.support.small_data import jpeg, pairs

KEYS = (["jpg", "jpeg", "png", "webp"], ["txt", "caption"])
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\n/"), min_size=1, max_size=30)


def header(name: bytes, size: bytes, kind: bytes = b"0", magic: bytes = b"ustar\0" + b"00") -> bytes:
    """A header block with a right checksum around any fields."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157], block[257:265] = kind, magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def base_256(size: int) -> bytes:
    return b"\x80" + size.to_bytes(11, "big")


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def walk(path: Path) -> tuple[list[tuple[str, int, int]], list[tuple[str, str]], str]:
    """The members that are found, those that are refused, and what ended the walk."""
    found, refused = [], []
    file = ChunkedFile(path)
    try:
        for member in members(file, lambda _: None, lambda *one: refused.append(one)):
            found.append(member)
    except DamagedTarError as error:
        if not 0 <= error.offset <= file.size:
            raise
        return found, refused, error.cause
    finally:
        file.close()
    return found, refused, ""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "size", [b"-0000000001\0", b"-0000001000\0", b"+0000000100\0", b"0_000000100\0", b"0o000000100\0", b"\xff" * 12]
)
def test_a_size_that_is_not_a_number_of_digits_ends_the_walk(tmp_path: Path, size: bytes) -> None:
    good = b"".join(header(name.encode(), octal(len(content))) + padded(content) for name, content in pairs(0, 3))
    crafted = header(b"a.jpg", size) + padded(jpeg(1)) + header(b"a.txt", octal(1)) + padded(b"x")
    (tmp_path / "0.tar").write_bytes(good + crafted + bytes(1024))
    with time_limit(10):
        found = index_tar(tmp_path / "0.tar", *KEYS)
    assert len(found.records) == 3
    assert [(problem.name, problem.cause) for problem in found.problems] == [("", "damaged shard")]


def test_a_pax_header_with_crafted_numbers_ends_the_walk(tmp_path: Path) -> None:
    for content in (b"9" * 5000 + b" size=1\n", b"15 size=-512\x00\n", "13 size=²²\n".encode(), b"0 a=b\n", b"3 a\n"):
        (tmp_path / "0.tar").write_bytes(
            header(b"x", octal(len(content)), b"x") + padded(content) + header(b"a.jpg", octal(0)) + bytes(1024)
        )
        with time_limit(10):
            assert walk(tmp_path / "0.tar")[2] == "damaged shard"
    many = b"5 a=\n" * 200_000
    (tmp_path / "0.tar").write_bytes(header(b"x", octal(len(many)), b"x") + padded(many) + bytes(1024))
    with time_limit(10):
        assert walk(tmp_path / "0.tar") == ([], [], "")


SIZES = st.one_of(
    st.integers(0, 3000).map(octal),
    st.integers(0, 3000).map(base_256),
    st.integers(0, 1 << 80).map(base_256),
    st.binary(min_size=12, max_size=12),
    st.from_regex(rb"[-+ ]?[0-9_o]{1,10}[ \0]", fullmatch=True),
)
CONTENTS = st.one_of(
    st.binary(max_size=1500),
    st.builds(lambda n, key, value: b"%d %s=%s\n" % (n, key, value), st.integers(0, 40), st.binary(max_size=8),
              st.one_of(st.binary(max_size=8), st.integers(-600, 600).map(lambda n: b"%d" % n))),
)  # fmt: skip
CRAFTED = st.builds(
    lambda name, size, kind, content, pad: header(name, size, kind) + (padded(content) if pad else content),
    st.binary(max_size=100), SIZES, st.sampled_from([b"0", b"\0", b"x", b"L", b"K", b"g", b"S", b"1", b"5", b"Z"]),
    CONTENTS, st.booleans(),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(CRAFTED, st.binary(min_size=BLOCK, max_size=BLOCK)), max_size=6), st.binary(max_size=600))
@example([header(b"", b"1\0", b"0")], b"\0")  # ends inside the padding of its last member
def test_any_bytes_end_the_walk_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[bytes], rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    content = b"".join(blocks) + rest
    path.write_bytes(content)
    with time_limit(20):
        found, _, _ = walk(path)
        index_tar(path, *KEYS)
    assert all(0 < offset <= offset + size <= len(content) for _, offset, size in found)
    offsets = [offset for _, offset, _ in found]
    assert offsets == sorted(set(offsets))


KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CONTTYPE])
MEMBERS = st.lists(
    st.tuples(st.lists(NAMES, min_size=1, max_size=9).map("/".join), KINDS, st.binary(max_size=1200)), max_size=6
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(MEMBERS, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_valid_archives_are_read_as_tarfile_reads_them(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[str, bytes, bytes]], form: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "valid.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, kind, content in wanted:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(content) if info.isreg() else 0
            try:
                tar.addfile(info, io.BytesIO(content))
            except ValueError:  # a name too long for USTAR
                continue
    found, refused, end = walk(path)
    with tarfile.open(path) as tar:
        theirs = list(tar)
    assert found == [(one.name, one.offset_data, one.size) for one in theirs if one.isreg()]
    assert [name for name, _ in refused] == [one.name for one in theirs if one.issym() or one.islnk()]
    assert end == ""


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=1200), st.sampled_from([octal, base_256])), min_size=1, max_size=5))
def test_sizes_in_base_256_are_read_as_tarfile_reads_them(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[bytes, object]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "base256.tar"
    blocks = [
        header(b"%d.jpg" % k, encode(len(content)), magic=b"ustar  \0") + padded(content)  # type: ignore[operator]
        for k, (content, encode) in enumerate(contents)
    ]
    path.write_bytes(b"".join(blocks) + bytes(1024))
    with tarfile.open(path) as tar:
        assert walk(path)[0] == [(one.name, one.offset_data, one.size) for one in tar]


def test_old_gnu_sparse_members_are_refused_and_what_follows_is_found(tmp_path: Path) -> None:
    sparse = bytearray(header(b"hole.jpg", octal(5), b"S", b"ustar  \0"))
    sparse[482] = 1
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    continued = bytes(504) + b"\1" + bytes(7) + bytes(BLOCK)
    (tmp_path / "0.tar").write_bytes(
        bytes(sparse) + continued + padded(b"12345") + header(b"a.txt", octal(3)) + padded(b"abc") + bytes(1024)
    )
    found, refused, end = walk(tmp_path / "0.tar")
    assert [name for name, _, _ in found] == ["a.txt"]
    assert (refused, end) == ([("hole.jpg", "sparse member")], "")


def test_data_after_the_end_marker_is_damage(tmp_path: Path) -> None:
    one = b"".join(header(name.encode(), octal(len(content))) + padded(content) for name, content in pairs(0, 10))
    (tmp_path / "joined.tar").write_bytes(one + bytes(1024) + one + bytes(1024))
    (tmp_path / "hole.tar").write_bytes(one + bytes(3 << 20))
    for name in ("joined", "hole"):
        found = index_tar(tmp_path / f"{name}.tar", *KEYS)
        assert len(found.records) == 10
        assert [problem.is_damage for problem in found.problems] == [True]
    assert index_tar(tmp_path / "joined.tar", *KEYS).problems[0].num == 10
