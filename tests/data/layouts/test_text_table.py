"""CSV and TSV as Python's csv module reads them; quotes that swallow rows, marks of other encodings, wrong paths."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import Layout, build_layout, num_lost
from clip_lightning.data.layouts.text_table import parse
from clip_lightning.data.sources import Source
from clip_lightning.errors import DataError
from tests.support.small_data import jpeg

CONFIG = {"image_keys": ["filepath"], "caption_keys": ["title"]}


def layout(path: Path, content: str | bytes, **changes: object) -> Layout:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    config = DataConfig(name="test", kind="table", path=str(path), **CONFIG)
    config.index_folder = str(path.parent / "cache")
    for name, value in changes.items():
        setattr(config, name, value)
    return build_layout(config)


def captions(found: Layout) -> list[str]:
    return [found.captions(k)[0] for k in range(found.num_samples)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(16):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    return tmp_path


CELLS = st.text(st.characters(codec="utf-8", exclude_characters=".\0\x1c\x1d\x1e\x85\u2028\u2029"), max_size=12)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8), st.sampled_from(",\t"), st.sampled_from(["\r\n", "\n"]))
def test_any_table_is_read_as_pythons_csv_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], delimiter: str, end: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("other", "title", "filepath"), *rows])
    path.write_bytes(stream.getvalue().encode())
    table = parse(Source(str(path), 0, ""), DataConfig(name="test", kind="table", **CONFIG)).to_pydict()
    read = list(csv.reader(io.StringIO(stream.getvalue(), newline=""), delimiter=delimiter))[1:]
    wanted = [(image, title.strip()) for _, title, image in read if image and title.strip()]
    assert list(zip(table["path"], (texts[0] for texts in table["captions"]), strict=True)) == wanted


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n\0"), max_size=12)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LINES, LINES), max_size=8))
def test_in_a_tsv_quotes_are_text(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    path.write_bytes("".join(f"{a}\t{b}\n" for a, b in [("filepath", "title"), *rows]).encode())
    table = parse(Source(str(path), 0, ""), DataConfig(name="test", kind="table", **CONFIG)).to_pydict()
    wanted = [(image, title.strip()) for image, title in rows if image and title.strip()]
    assert list(zip(table["path"], (texts[0] for texts in table["captions"]), strict=True)) == wanted


def rows_with(quote_in: dict[int, str]) -> str:
    lines = [f"{k}.jpg,{quote_in.get(k, f'caption {k}')}" for k in range(16)]
    return "\n".join(["filepath,title", *lines]) + "\n"


def test_a_quote_that_is_never_closed_is_an_error_with_its_line(folder: Path) -> None:
    for content in (rows_with({3: '"a dog'}), rows_with({15: '"a dog'}).rstrip()):
        line = 5 if '3.jpg,"' in content else 17
        with pytest.raises(
            DataError, match=rf"t\.csv: a quote in the row of line {line} is never closed; .*data\.quotes=false"
        ):
            layout(folder / "t.csv", content)
    long = "filepath,title\n" + '0.jpg,"' + "x" * 200_000 + "\n"
    with pytest.raises(DataError, match=r"line 2 .*data\.quotes=false"):
        layout(folder / "t.csv", long)
    found = layout(folder / "t.csv", rows_with({3: '"a dog'}), quotes=False)
    assert found.num_samples == 16
    assert found.captions(3) == ['"a dog']


def test_rows_inside_a_quoted_field_are_counted(folder: Path) -> None:
    found = layout(folder / "t.csv", rows_with({3: '"a dog', 6: '"a cat'}))
    assert found.num_samples == 12
    assert [(one.name, one.cause, one.num) for one in found.problems] == [("line 5", "rows inside a quoted field", 4)]
    titles_first = "title,filepath\n" + '"a dog,0.jpg\na cat,1.jpg\n"a cow,2.jpg\na pig,3.jpg\n'
    found = layout(folder / "u.csv", titles_first)
    assert captions(found) == ["a pig"]
    assert num_lost(found.problems) == 3


def test_a_quoted_field_with_a_newline_and_a_delimiter_is_reported_and_read(folder: Path) -> None:
    found = layout(folder / "t.csv", 'filepath,title\n0.jpg,"a dog, and\na cat"\n1.jpg,"two\nlines"\n')
    assert captions(found) == ["a dog, and\na cat", "two\nlines"]
    assert [(one.name, one.num) for one in found.problems] == [("line 2", 0)]


def test_quotes_of_a_tsv_are_read_where_it_is_set(folder: Path) -> None:
    content = 'filepath\ttitle\n0.jpg\t"say ""hello"""\n1.jpg\ta 3" pipe\n2.jpg\tplain\n'
    found = layout(folder / "t.tsv", content)
    assert captions(found) == ['"say ""hello"""', 'a 3" pipe', "plain"]
    assert [(one.name, one.num, one.hint) for one in found.problems] == [
        ("line 2", 0, "write data.quotes=true if its fields are in quotes")
    ]
    found = layout(folder / "t.tsv", content, quotes=True)
    assert captions(found) == ['say "hello"', 'a 3" pipe', "plain"]
    assert not found.problems


def test_byte_order_marks_are_no_part_of_the_text(folder: Path) -> None:
    assert captions(layout(folder / "t.csv", b"\xef\xbb\xbffilepath,title\n0.jpg,one\n")) == ["one"]
    assert captions(layout(folder / "t.jsonl", b'\xef\xbb\xbf{"filepath": "0.jpg", "title": "one"}\n')) == ["one"]
    with pytest.raises(DataError, match="UTF-16"):
        layout(folder / "u.csv", "filepath,title\n0.jpg,one\n".encode("utf-16"))
    (folder / "0.txt").write_bytes(b"\xef\xbb\xbfone")
    config = DataConfig(name="test", kind="folder", path=str(folder))
    assert build_layout(config).captions(0) == ["one"]


def test_wrong_paths_are_one_sentence_with_an_example(folder: Path) -> None:
    with pytest.raises(DataError, match=r"relative to the table's folder \(.*\); none of the first 2 exists: images/0"):
        layout(folder / "t.csv", "filepath,title\nimages/0.jpg,one\nimages/1.jpg,two\n")
    with pytest.raises(DataError, match=r"holds URLs \(https://a/b\.jpg\).*img2dataset"):
        layout(folder / "u.csv", "filepath,title\nhttps://a/b.jpg,one\n")
    assert layout(folder / "v.csv", f"filepath,title\ngone.jpg,one\n{folder}/1.jpg,two\n").num_samples == 2
