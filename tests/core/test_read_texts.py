from pathlib import Path

import pytest

from lora_gpt.core.data import DataError, read_texts, texts_of_lines

LIMIT = 1000


def texts_of(tmp_path: Path, name: str, content: str | bytes) -> list[str]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_texts(path, LIMIT)


def test_text_file(tmp_path):
    """A .txt file holds one message a line; blank lines and the kind of line end do not matter."""
    assert texts_of(tmp_path, "a.txt", "Hi, Ann\r\n\r\n  =1+1 \nyes\u2028or no") == [
        "Hi, Ann",
        "=1+1",
        "yes\u2028or no",
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "messages"])
def test_only_column(tmp_path, name):
    """A table of one column needs no header, and drops one that says text."""
    assert texts_of(tmp_path, name, "Hello\nPay now\n") == ["Hello", "Pay now"]
    assert texts_of(tmp_path, name, "Message\nHello, Ann\nPay now\n") == ["Hello, Ann", "Pay now"]


def test_only_column_with_quotes(tmp_path):
    """A quoted cell may go over several lines; a quotation mark that is not closed is just text."""
    assert texts_of(tmp_path, "a.csv", 'text\n"one\ntwo, ""three"""\nfour\n') == [
        'one\ntwo, "three"',
        "four",
    ]
    assert texts_of(tmp_path, "a.csv", '"Hi\nthere\n') == ['"Hi', "there"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_text_column(tmp_path, separator):
    """Of several columns the one that is called text is read, whatever the others hold."""
    rows = [["id", "Text", "note"], ["1", "Pay now", "long words beside it"], ["2", "Hi", "x"]]
    table = "\n".join(separator.join(row) for row in rows)
    assert texts_of(tmp_path, "a.csv", table) == ["Pay now", "Hi"]


def test_text_column_without_name(tmp_path):
    """Without a known name the column with the most to read is taken, a row of names left out."""
    assert texts_of(tmp_path, "a.csv", "id,comment\n1,Pay now\n2,Hi there\n") == [
        "Pay now",
        "Hi there",
    ]
    assert texts_of(tmp_path, "a.tsv", "ham\tok\nspam\tPay now at once\n") == [
        "ok",
        "Pay now at once",
    ]


@pytest.mark.parametrize(
    "table",
    [
        "Sender name,Message body\nBob,{}\nAnn,{}\n",
        "Spam label,Words of it\nspam,{}\nham,{}\n",
        "1,2\nno,{}\nyes,{}\n",
        "Message text\n{}\n{}\n",
    ],
)
def test_a_header_of_several_words_is_no_message(tmp_path, table):
    """By its words, or by the rule of a table to train on: a first row without a label is one."""
    texts = ["Pay now at once", "See you at four"]
    assert texts_of(tmp_path, "a.csv", table.format(*texts)) == texts


@pytest.mark.parametrize(
    "table", ["label\ttext\nspam\t{}\nham\t{}\n", "SMS text,Class\r\n{},spam\r\n{},ham\r\n"]
)
def test_a_table_in_a_text_file_is_a_table(tmp_path, table):
    """Its header names labels and texts, as a table that is pasted from a spreadsheet does."""
    texts = ["Pay now at once", "See you at four"]
    assert texts_of_lines(table.format(*texts)) == texts
    assert texts_of(tmp_path, "a.txt", table.format(*texts)) == texts


def test_a_first_line_that_names_the_texts_is_no_message(tmp_path):
    """Unless it is all there is; and two words of a message are not two names."""
    assert texts_of_lines("\nMessage text\nHello\nBye") == ["Hello", "Bye"]
    assert texts_of_lines("Text\n") == ["Text"]
    for text in ("Hello there\nBye", "ham\nspam", "Text me, Ann\nBye"):
        assert texts_of_lines(text) == text.split("\n")


def test_unequal_rows_are_lines(tmp_path):
    """Plain lines saved as .csv stay whole where a comma stands in some of them."""
    lines = ["Hello, Ann, how are you", "Pay now, please", "ok"]
    assert texts_of(tmp_path, "a.csv", "\n".join(lines)) == lines


def test_a_line_that_begins_with_a_quotation(tmp_path):
    """Plain lines stay plain lines; in a table that names its texts the mark must be closed."""
    lines = ["Hello, Ann", '"Yes" he said, "no"', '"ok']
    assert texts_of(tmp_path, "a.csv", "\n".join(lines)) == lines
    with pytest.raises(DataError, match="must close every quotation mark"):
        texts_of(tmp_path, "a.csv", '"id","text"\r\n1,"Hello\n2,"Bye"\n')


def test_encodings(tmp_path):
    """Umlauts and signs survive in UTF-8, UTF-16 and Windows-1252."""
    for encoding in ("utf-8-sig", "utf-16", "cp1252"):
        assert texts_of(tmp_path, "a.txt", "Grüße €5".encode(encoding)) == ["Grüße €5"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "a.txt: must hold messages, and is empty"),
        ("a.csv", b"\n \n", "a.csv: must hold messages, and is empty"),
        ("a.csv", b",\n,\n", "a.csv: must hold messages; every row of it is blank."),
        ("a.csv", b"text\n", "a.csv: must hold messages, and has none"),
        ("a.csv", b"text,id\n,1\n", "a.csv: must hold messages, and has none"),
        ("a.txt", b"PK\x03\x04\0\0\0", "must be a text file"),
        ("a.csv", b"id,text\n1,Hello, Ann\n", "row 2 has 3"),
        ("a.txt", b"hi\n" * (LIMIT + 1), "must hold at most 1,000 messages; got 1,001"),
        ("a.txt", b"a" * 20_000_001, "must be at most 20 MB"),
    ],
)
def test_refused(tmp_path, name, content, says):
    """A file that is empty, no text or too large is refused in a sentence with its name."""
    with pytest.raises(DataError, match=says) as refused:
        texts_of(tmp_path, name, content)
    assert str(refused.value).startswith(name)
