"""Reading messages: the known sources, people's own tables, and files that cannot be used."""

import hashlib
import io
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_gpt.config import DataConfig
from lora_gpt.core import data, fetching
from lora_gpt.core.data import DataError, Message, find_sms_spam, read_messages

SPAM = [f"Win prize number {n} now" for n in range(10)]
HAM = [f"See you at {n}, mother" for n in range(10)]


def table(separator=",", header=("label", "text"), spam="spam", ham="ham", quote='"'):
    """Ten messages of each class as a table of two columns."""
    rows = [(spam, text) for text in SPAM] + [(ham, text) for text in HAM]
    lines = [separator.join(header)] if header else []
    lines += [f"{label}{separator}{quote}{text}{quote}" for label, text in rows]
    return "\n".join(lines) + "\n"


@pytest.fixture
def read(tmp_path):
    """Write a file and read its messages."""

    def write_and_read(content: str | bytes, **knobs):
        path = tmp_path / "mine.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_messages(DataConfig(data=str(path), **knobs))

    return write_and_read


def texts(messages: list[Message]) -> list[str]:
    return [each.text for each in messages]


def labels(messages: list[Message]) -> list[bool]:
    return [each.is_spam for each in messages]


# --- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_reads_a_quoted_table(read, separator):
    """Comma, semicolon and bar separate cells, quotes hold separators together."""
    messages = read(table(separator))
    assert texts(messages) == SPAM + HAM
    assert labels(messages) == [True] * 10 + [False] * 10


def test_reads_the_sms_format(read):
    """Label, tab, text, no header; quotes are plain characters and never join lines."""
    lines = [f'spam\t"{text}' for text in SPAM] + [f'ham\t{text} "quoted' for text in HAM]
    messages = read("\n".join(lines))
    assert texts(messages)[0] == '"Win prize number 0 now'
    assert len(messages) == 20


def test_a_break_inside_quotes_belongs_to_the_message(read):
    """A quoted cell may hold line breaks, doubled quotes and the separator."""
    messages = read(table() + 'ham,"first; line, one\nsecond ""line"""\n')
    assert messages[-1] == Message('first; line, one\nsecond "line"', False)


def test_a_tsv_with_a_break_inside_quotes_is_read_as_quoted(read):
    """Quotes count in a TSV when its columns only add up with them."""
    messages = read(table("\t") + 'ham\t"first line\nsecond line"\n')
    assert messages[-1].text == "first line\nsecond line"


@pytest.mark.parametrize("place", [0, 3, 24])
def test_quotes_in_a_tsv_with_a_torn_row_join_nothing(read, place):
    """A row without text does not turn quotation marks that begin messages into quotes."""
    lines = [f"ham\t{mark}come at {n}" for n in range(6) for mark in ('"', "")]
    lines += [f"spam\tprize {n}" for n in range(12)]
    lines.insert(place, "ham")
    if place == 0:
        lines.insert(0, "label\ttext")
    messages = read("\n".join(lines))
    assert labels(messages) == [False] * 12 + [True] * 12
    assert texts(messages)[0] == '"come at 0'


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_windows_files_are_read(read, mark):
    """A byte order mark and CRLF leave no trace in names and texts."""
    assert texts(read(mark + table().replace("\n", "\r\n").encode())) == SPAM + HAM


def test_old_encodings_are_read(read):
    """What is not UTF-8 but clearly text is read as Windows-1252, with a mark as UTF-16."""
    content = table() + 'spam,"£1,000 – naïve"\n'
    for encoding in ("cp1252", "utf-16"):
        assert texts(read(content.encode(encoding)))[-1] == "£1,000 – naïve"


@pytest.mark.parametrize(
    "header", [("Category", "Message"), ("v1", "v2"), ("is_spam", "body"), ("verdict", "words")]
)
def test_columns_are_found_by_name_or_content(read, header):
    """Usual names are known; other names are seen by what the columns hold."""
    assert texts(read(table(header=header))) == SPAM + HAM


def test_columns_are_found_among_others(read):
    """Numbers, dates and empty columns do not distract."""
    rows = ["n,when,what,,words"]
    rows += [f"{n},2026-01-{n + 1:02},spam,,{text}" for n, text in enumerate(SPAM)]
    rows += [f"{n},2026-02-{n + 1:02},ham,,{text.replace(',', '')}" for n, text in enumerate(HAM)]
    messages = read("\n".join(rows))
    assert texts(messages)[:10] == SPAM
    assert labels(messages) == [True] * 10 + [False] * 10


def test_a_column_named_spam_is_a_label(read):
    """`text,spam` with 0 and 1 is a header, though spam is also a label word."""
    rows = ["text,spam"] + [f"{text},1" for text in SPAM] + [f'"{text}",0' for text in HAM]
    assert labels(read("\n".join(rows))) == [True] * 10 + [False] * 10
    messages = read(table(header=("spam", "email"), spam="1", ham="0"))
    assert texts(messages) == SPAM + HAM


def test_a_table_without_a_header_keeps_its_first_message(read):
    """A first row that holds a label is a message; columns can then be named by number."""
    assert texts(read(table(header=()))) == SPAM + HAM
    assert texts(read(table(header=()), label_column="1", text_column="2")) == SPAM + HAM
    assert texts(read(table(header=(), spam="1", ham="0"))) == SPAM + HAM


def test_numbered_headers_of_pandas_are_headers(read):
    """A frame saved without names is headed 0, 1: not a ham message that says 1."""
    assert texts(read(table(header=("0", "1")))) == SPAM + HAM


def test_told_columns_are_taken(read):
    """The column knobs decide where a table holds several candidates, capitals aside."""
    rows = ["label,text,Human,original"]
    rows += [f"ham,short,spam,{text}" for text in SPAM]
    rows += [f'spam,short,ham,"{text}"' for text in HAM]
    messages = read("\n".join(rows), label_column="human", text_column="original")
    assert texts(messages) == SPAM + HAM
    assert labels(messages) == [True] * 10 + [False] * 10


def test_blank_texts_and_rows_without_label_are_left_out(read):
    """Empty lines, blank texts and unlabelled rows are no messages."""
    assert len(read(table() + '\nham,"  "\nspam,\n,"hello"\n\n')) == 20


def test_topics_are_kept(read):
    """A column called topic travels with the message."""
    rows = ["label,topic,text"] + [f"spam,prize,{t}" for t in SPAM]
    rows += [f'ham,family,"{t}"' for t in HAM]
    assert {each.topic for each in read("\n".join(rows))} == {"prize", "family"}


# --- label words -------------------------------------------------------------------------------


def test_unknown_label_words_are_asked_for(read):
    """The sentence lists the labels and names the knob; with the knob set they are read."""
    content = table(spam="rot", ham="fine")
    with pytest.raises(DataError, match=r"holds fine, rot; set spam_label"):
        read(content)
    assert labels(read(content, spam_label="Rot")) == [True] * 10 + [False] * 10


def test_with_several_labels_the_told_one_is_spam(read):
    """Everything that is not the told label is ham."""
    content = table() + "".join(f"news,today {n}\n" for n in range(3))
    with pytest.raises(DataError, match="set spam_label"):
        read(content)
    assert sum(labels(read(content, spam_label="spam"))) == 10


def test_a_spam_label_that_is_not_there_is_refused(read):
    """The sentence says which labels there are."""
    with pytest.raises(DataError, match=r"spam_label: must be one of ham, spam .*got 'rot'"):
        read(table(), spam_label="rot")


# --- files that cannot be used -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"PK\x03\x04\0\0\0\0\x01\x02", "must be a text file"),
        (bytes(range(1, 256)) * 20, "must be a text file"),
        (b"\xff\xfe\x00", "must be a text file"),
        (b"just a letter\nto my aunt\n", "must have a label and a text column"),
        (b"a,b\n1.5,hello there\n2.5,well well\n7,oh\n", "Name it in label_column"),
        (b"label,text,text\nspam,a,b\n", "must name its columns differently"),
        (b"label,text\nham,hello, you\n", "row 2 has 3"),
        (b'label,text\nham,"' + b"so long " * 40_000, "must close every quotation mark"),
        (table().encode() + b'ham,"so long\nham,"bye"\n', r"quotation mark.*got .* \(line 23\)"),
        (table().encode() + b"ham," + b"so long " * 20_000, "at most 131,072 characters in a cell"),
        (table().split("ham")[0].encode(), "got 10 spam and 0 ham, too little ham"),
        (b"label,text\nspam,buy\nham,hello\n", "got 1 spam and 1 ham, too little spam"),
        (b"label,text\n", "got 0 spam and 0 ham"),
        (b",\n,\n", "must hold messages; every row of it is blank."),
    ],
)
def test_a_file_that_cannot_be_used_gets_a_sentence(read, content, says):
    """Each fault is named, with the file's name."""
    with pytest.raises(DataError, match=says) as caught:
        read(content)
    assert "mine.csv" in str(caught.value)


def test_a_table_that_would_grow_is_refused(read, monkeypatch):
    """Short rows are not filled up to a wide header at any price."""
    wide = "label,text" + "," * 2_998
    monkeypatch.setattr(data, "_check_widths", lambda *given: pytest.fail("went on"))
    with pytest.raises(DataError, match=r"at most 4,000,000 cells; got 3,000 columns in 2,001"):
        read(wide + "\nspam" * 2_000)


def test_of_a_table_that_is_too_large_nothing_is_kept_beyond_the_limit(read, monkeypatch):
    """A row or a cell of two bytes takes fifty in memory: too many of them are not read first."""
    monkeypatch.setattr(data, "MOST_CELLS", 100)
    monkeypatch.setattr(data, "MOST_ROWS", 21)
    read_rows, islice = [], data.islice
    monkeypatch.setattr(
        data, "islice", lambda *given: read_rows.extend(islice(*given)) or read_rows
    )
    assert len(read(table())) == 20 and len(read_rows) == 21
    for content, rows in ((table() + "ham,ok\n" * 50, 22), (table() + "," * 100, 0)):
        read_rows.clear()
        with pytest.raises(DataError, match=r"mine.csv: must have at most 21 rows and 100 cells"):
            read(content)
        assert len(read_rows) == rows


def test_a_separator_that_cuts_too_much_is_not_meant(read, monkeypatch):
    """Commas inside the texts of a table with semicolons are no cells."""
    monkeypatch.setattr(data, "MOST_CELLS", 100)
    content = table(";", header=("label", "text", "a, b")) + f'ham;"{"," * 100} so long"\n'
    assert len(read(content)) == 21


def test_a_sentence_holds_only_some_of_many_columns(read):
    """However many there are, and however long their names."""
    wide = ",".join(f"{'c' * 100}{n}" for n in range(3_000)) + "\n"
    for knobs in ({}, {"text_column": "x", "label_column": "y"}):
        with pytest.raises(DataError, match=r"and 2,992 more") as caught:
            read(wide, **knobs)
        assert len(str(caught.value)) < 600


def test_a_column_that_is_not_there_is_refused(read):
    """The sentence names the knob and the columns that there are."""
    for knob in ("label_column", "text_column"):
        with pytest.raises(DataError, match=f"{knob}: must be one of label, text in mine.csv"):
            read(table(), **{knob: "nowhere"})


def test_more_messages_than_can_be_compared_are_refused(read, monkeypatch):
    """The sentence says how many there may be and how many there are."""
    monkeypatch.setattr(data, "MOST_MESSAGES", 20)
    assert len(read(table())) == 20
    with pytest.raises(DataError, match=r"mine\.csv: must hold at most 20 messages; got 21"):
        read(table() + "ham,one more\n")


def test_a_large_file_is_refused_before_it_is_read(read, monkeypatch):
    """The limit is checked on the size that the disk reports."""
    monkeypatch.setattr(data, "LARGEST_FILE", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("was read"))
    with pytest.raises(DataError, match="must be at most 0 MB"):
        read(table().encode() + b"\n" * 100)


@pytest.mark.parametrize(("path", "says"), [("nowhere.csv", "not there"), ("", "no file")])
def test_a_path_without_a_file_is_refused(tmp_path, path, says):
    """A missing file and a folder are told apart."""
    with pytest.raises(DataError, match=says):
        read_messages(DataConfig(data=str(tmp_path / path)))


def test_a_path_that_no_disk_can_hold_is_refused():
    """A NUL in a typed path is a caller's mistake as any other."""
    with pytest.raises(DataError, match="not there"):
        read_messages(DataConfig(data="mine\0.csv"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused(tmp_path):
    """What the system says of the file is passed on."""
    path = tmp_path / "mine.csv"
    path.write_text(table())
    path.chmod(0)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        read_messages(DataConfig(data=str(path)))


def test_formulas_and_code_stay_text(read):
    """Texts are data: nothing in them is run or rewritten."""
    nasty = ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", "{__import__('os')}"]
    messages = read(table() + "".join(f'spam,"{text}"\n' for text in nasty))
    assert texts(messages)[-3:] == nasty


# --- the SMS Spam Collection -------------------------------------------------------------------

COLLECTION = ("\n".join([f"spam\t{t}" for t in SPAM] + [f"ham\t{t}" for t in HAM])).encode()


def zipped(name="SMSSpamCollection") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, COLLECTION)
        archive.writestr("readme", "about the collection")
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """A server on this machine; `asked` counts the requests, `content` is what it answers."""
    monkeypatch.delenv("LORA_GPT_DATA", raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *about):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.content = 0, zipped()
    server.url = f"http://127.0.0.1:{server.server_port}/sms.zip"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_collection_is_downloaded_once(server, tmp_path):
    """The second time it is taken from the cache, even offline."""
    given = ([server.url], sha256(server.content), sha256(COLLECTION), tmp_path)
    assert find_sms_spam(*given).read_bytes() == COLLECTION
    assert find_sms_spam(*given) == tmp_path / "SMSSpamCollection"
    assert server.asked == 1


def test_a_damaged_copy_is_replaced(server, tmp_path):
    """A kept file that is not what it should be is unpacked again."""
    given = ([server.url], sha256(server.content), sha256(COLLECTION), tmp_path)
    find_sms_spam(*given).write_bytes(b"half a fi")
    assert find_sms_spam(*given).read_bytes() == COLLECTION


@pytest.mark.parametrize("fault", ["zip hash", "file hash", "no zip", "no member", "no server"])
def test_a_download_that_fails_says_what_to_do(server, tmp_path, fault):
    """Wrong content is never kept, and the sentence shows the ways out."""
    if fault == "no zip":
        server.content = b"<html>moved</html>"
    if fault == "no member":
        server.content = zipped("another")
    if fault == "no server":
        server.url = "http://127.0.0.1:9/sms.zip"
    zip_sha = sha256(b"" if fault == "zip hash" else server.content)
    file_sha = sha256(b"" if fault == "file hash" else COLLECTION)
    with pytest.raises(DataError, match=r"Connect to the internet.*set LORA_GPT_DATA"):
        find_sms_spam([server.url], zip_sha, file_sha, tmp_path)
    assert not (tmp_path / "SMSSpamCollection").exists()


def test_a_mirror_is_asked_where_the_archive_fails(server, tmp_path):
    """Its copy passes the same checks; where both fail, the sentence names both."""
    dead, given = "http://127.0.0.1:9/sms.zip", (sha256(server.content), sha256(COLLECTION))
    assert find_sms_spam([dead, server.url], *given, tmp_path).read_bytes() == COLLECTION
    server.content = b"<html>moved</html>"
    with pytest.raises(DataError, match=rf"from {dead} or {server.url}\. Connect"):
        find_sms_spam([dead, server.url], *given, tmp_path / "another")


def test_a_download_that_failed_is_not_tried_again_at_once(server, tmp_path, monkeypatch):
    """The page asks at every move of a knob; a minute later the network may be back."""
    now, content = [600.0], server.content
    given = ([server.url], sha256(content), sha256(COLLECTION), tmp_path)
    server.content = b"<html>moved</html>"
    monkeypatch.setattr(fetching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for now[0], asked in ((600.0, 1), (659.0, 1), (661.0, 2)):
        with pytest.raises(DataError, match="Connect to the internet"):
            find_sms_spam(*given)
        assert server.asked == asked
    now[0], server.content = 721.0, content
    assert find_sms_spam(*given).read_bytes() == COLLECTION


def test_a_connection_is_not_waited_for_long(server, tmp_path, monkeypatch):
    """Nor is an answer that stops half way."""
    given, real = [], data.pooch.HTTPDownloader
    monkeypatch.setattr(
        data.pooch, "HTTPDownloader", lambda timeout: given.append(timeout) or real(timeout=timeout)
    )
    find_sms_spam([server.url], sha256(server.content), sha256(COLLECTION), tmp_path)
    assert given == [(5, 30)]


def test_the_folder_given_comes_first(tmp_path, monkeypatch):
    """With LORA_GPT_DATA set nothing is downloaded."""
    monkeypatch.setenv("LORA_GPT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="LORA_GPT_DATA: must be a folder that holds"):
        find_sms_spam()
    (tmp_path / "SMSSpamCollection").write_bytes(COLLECTION)
    assert texts(read_messages(DataConfig(data="sms-spam"))) == SPAM + HAM


@pytest.mark.data
@pytest.mark.skipif("LORA_GPT_DATA" not in os.environ, reason="LORA_GPT_DATA is not set")
def test_the_real_collection_is_read_whole():
    """5,574 messages, 747 of them spam: quoting off, otherwise lines merge."""
    messages = read_messages(DataConfig(data="sms-spam"))
    assert len(messages) == 5574
    assert sum(labels(messages)) == 747
