"""Messages and where they come from: the bundled file, the SMS Spam Collection, or a table of one's
own.

Knows file formats, columns and label words. Knows nothing of models, splits or pages. Every text is
data from strangers: it is read, never run.
"""

import csv
import hashlib
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import platformdirs
import pooch

from lora_gpt.config import DataConfig
from lora_gpt.core.fetching import TIMEOUTS, faults_of_this_minute

BUNDLED = Path(__file__).parents[2] / "assets" / "messages.tsv"
UCI = "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip"
MIRROR = "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip"
"""A copy that the author of a textbook keeps, for when the archive is out of reach."""
UCI_SHA256 = "1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3"
SMS_FILE = "SMSSpamCollection"
SMS_SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"
LARGEST_FILE = 20_000_000
"""Bytes."""
MOST_MESSAGES = 20_000
MOST_ROWS = 200_000
"""Of a table, ten times as many as messages can be used: the others lack a label or a text."""
MOST_CELLS = 4_000_000
"""Of a table, short rows filled up: some 200 columns beside as many messages as can be used."""
FEWEST_OF_A_CLASS = 10

SPAM_WORDS = {"spam", "junk", "1", "1.0", "true", "yes", "unwanted"}
HAM_WORDS = {"ham", "not spam", "non-spam", "0", "0.0", "false", "no", "wanted", "legit", "normal"}
LABEL_NAMES = ("label", "class", "category", "target", "type", "is_spam", "spam", "v1")
TEXT_NAMES = ("text", "message", "sms", "body", "content", "message_text", "v2")


class DataError(ValueError):
    """The messages cannot be used. The message says what is wrong and what to do."""


@dataclass(frozen=True)
class Message:
    """One labelled message. `topic` is what the bundled messages say of themselves."""

    text: str
    is_spam: bool
    topic: str = ""


def read_messages(config: DataConfig) -> list[Message]:
    """The labelled messages of `config.data`, in the order of the file, blank texts left out.

    Rows without a label are left out too. Raises DataError for a file that cannot be read as a
    table of messages and labels, or that has fewer than 10 messages of a class or more than 20,000
    in all.
    """
    if config.data == "bundled":
        path = BUNDLED
    elif config.data == "sms-spam":
        path = find_sms_spam()
    else:
        path = Path(config.data)
    messages = _labelled(_columns(path.name, _text(path), config), path.name, config)
    _check_classes(messages, path.name)
    if len(messages) > MOST_MESSAGES:
        raise DataError(
            f"{path.name}: must hold at most {MOST_MESSAGES:,} messages; got {len(messages):,}."
            " Take a sample of its rows."
        )
    return messages


def read_texts(path: Path, limit: int) -> list[str]:
    """The messages of a file without labels, in its order, blank ones left out.

    A .txt file is read as `texts_of_lines` does. Anything else is read as a table: its text column,
    found as in `read_messages`, or its only column, with or without a header. A table without a
    header whose rows have unequal numbers of cells is taken for plain lines. Raises DataError for a
    file that is empty, too large or no text, and for one of more than `limit` messages.
    """
    text, plain = _text(path), path.suffix.lower() == ".txt"
    cells = texts_of_lines(text, path.name) if plain else _text_cells(path.name, text)
    texts = [cell.strip() for cell in cells if cell.strip()]
    if not texts:
        raise DataError(f"{path.name}: must hold messages, and has none")
    if len(texts) > limit:
        raise DataError(
            f"{path.name}: must hold at most {limit:,} messages; got {len(texts):,}. Divide it into"
            " several files."
        )
    return texts


def texts_of_lines(text: str, name: str = "Messages") -> list[str]:
    """The messages of plain text, one a line, a first line that names the texts left out.

    Where it names a column of labels and one of texts, as a table pasted from a spreadsheet does,
    it is the text column. Raises DataError, in which the text is called `name`.
    """
    header = {cell.strip(' \r"').lower() for cell in re.split(r"[\t,;|]", _first_line(text))}
    if header & set(LABEL_NAMES) and any(map(_names_texts, header)):
        return _text_cells(name, text)
    lines = [line for line in _lines(text) if line.strip()]
    return lines[1:] if len(lines) > 1 and _names_texts(lines[0]) else lines


def find_sms_spam(
    urls: Sequence[str] = (UCI, MIRROR),
    zip_sha256: str = UCI_SHA256,
    file_sha256: str = SMS_SHA256,
    cache: Path | None = None,
) -> Path:
    """The SMS Spam Collection's file: in the folder LORA_GPT_DATA where that is set, otherwise
    downloaded once from the first of `urls` that gives it, checked, and kept in `cache` (the user's
    cache folder).

    Source: Almeida and Gomez Hidalgo, UCI Machine Learning Repository, doi 10.24432/C5CC84,
    CC BY 4.0. Raises DataError where it is neither there nor reachable, and for about a minute
    without a new try.
    """
    if folder := os.environ.get("LORA_GPT_DATA"):
        given = Path(folder) / SMS_FILE
        if not given.is_file():
            raise DataError(f"LORA_GPT_DATA: must be a folder that holds {SMS_FILE}; got {folder}")
        return given
    cache = cache or Path(platformdirs.user_cache_dir("lora_gpt"))
    kept = cache / SMS_FILE
    try:
        if kept.is_file() and _sha256(kept.read_bytes()) == file_sha256:
            return kept
    except OSError:  # a copy that cannot be read is as good as none
        pass
    with faults_of_this_minute(kept, *urls) as faults:
        for url in urls[len(faults) :]:
            try:
                _download_sms_spam(kept, url, zip_sha256, file_sha256)
                return kept
            # No connection is an OSError, a wrong checksum a ValueError, no member a KeyError.
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                faults.append(error)
    raise DataError(
        f"The SMS Spam Collection could not be downloaded from {' or '.join(urls)}. Connect to the"
        f" internet and try again, or fetch it elsewhere, unpack {SMS_FILE} into a folder and set"
        " LORA_GPT_DATA to that folder; the bundled messages need no download."
    ) from faults[-1]


def _download_sms_spam(kept: Path, url: str, zip_sha256: str, file_sha256: str) -> None:
    downloader = pooch.HTTPDownloader(timeout=TIMEOUTS)
    packed = pooch.retrieve(
        url, zip_sha256, fname="sms_spam_collection.zip", path=kept.parent, downloader=downloader
    )
    with zipfile.ZipFile(packed) as archive:
        content = archive.read(SMS_FILE)
    if _sha256(content) != file_sha256:
        raise ValueError(f"{SMS_FILE}: must have the SHA-256 {file_sha256}")
    # Moved into place whole, so that a killed process leaves no half file behind.
    part = kept.with_name(f"{SMS_FILE}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(kept)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- bytes -> text -----------------------------------------------------------------------------


def _text(path: Path) -> str:
    """The file's text: UTF-8 or UTF-16 by its mark, otherwise UTF-8, otherwise Windows-1252."""
    text = _decoded(_content(path))
    if text is None:
        raise DataError(
            f"{path.name}: must be a text file, not a spreadsheet, archive or picture. Save the"
            " table as CSV (UTF-8) and choose that."
        )
    if not text.strip():
        raise DataError(f"{path.name}: must hold messages, and is empty")
    return text


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(
            f"data: must be bundled, sms-spam or the path of a CSV or TSV file; got {str(path)!r},"
            f" which is {'no file' if path.exists() else 'not there'}"
        )
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror or error})") from error
    if size > LARGEST_FILE:
        raise DataError(
            f"{path.name}: must be at most {LARGEST_FILE / 1e6:.0f} MB; got {size / 1e6:.1f} MB."
            " Take a sample of its rows."
        )
    return content


def _decoded(content: bytes) -> str | None:
    """The text in `content`, None where the bytes are no text."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        # Any byte is a character of Latin-1; control characters tell pictures from text. A few
        # are let through: real messages hold stray ones.
        controls = sum(text.count(chr(code)) for code in range(1, 32) if code not in (9, 10, 13))
        return None if "\0" in text or controls > len(text) / 200 + 2 else text
    return None


# --- text -> columns ---------------------------------------------------------------------------

Columns = dict[str, list[str]]


def _columns(file: str, text: str, config: DataConfig) -> Columns:
    """The table in `text` as columns by name; a table without a header names them 1, 2, ..."""
    rows = _rows(file, text)
    width = len(rows[0])
    # Before anything is filled up: a small file of one wide row and many short ones would grow
    # to any size.
    if width * len(rows) > MOST_CELLS:
        raise DataError(
            f"{file}: must have at most {MOST_CELLS:,} cells; got {width:,} columns in"
            f" {len(rows):,} rows. Leave out columns that hold neither labels nor texts."
        )
    header = [cell.strip() for cell in rows[0]]
    first = 1 if _is_header(rows, config) else 0
    if first == 0:
        header = [""] * len(header)
    header = [cell or str(number) for number, cell in enumerate(header, 1)]
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(f"{file}: must name its columns differently; got {twice[0][:40]!r} twice")
    _check_widths(file, rows)
    padded = (row + [""] * (width - len(row)) for row in rows[first:])
    table = list(zip(*(row[:width] for row in padded), strict=True)) or [()] * width
    return {name: list(column) for name, column in zip(header, table, strict=True)}


def _is_header(rows: Sequence[Sequence[str]], config: DataConfig) -> bool:
    """Whether the first row names columns: otherwise it holds a label."""
    cells = [cell.strip().lower() for cell in rows[0]]
    if set(cells) & set(TEXT_NAMES) and set(cells) & set(LABEL_NAMES):
        return True
    # A frame saved by pandas without names is headed 0, 1, which are also words for ham and spam.
    if all(cell.isdigit() or not cell for cell in cells):
        return True
    labels = set(cells) & _known(config)
    if labels - set(LABEL_NAMES):
        return False
    # A column may be called spam; a label stands in other rows of its column too.
    columns = (cells.index(label) for label in labels)
    return not any(
        cells[n] in (row[n].strip().lower() for row in rows[1:] if row[n:]) for n in columns
    )


def _rows(file: str, text: str) -> list[list[str]]:
    """Rows of several cells, blank rows left out, by the separator that fits the rows best."""
    try:
        rows = _separated(file, text)
    except csv.Error as error:
        raise _unquotable(file, error) from error
    if rows:
        return rows
    raise DataError(
        f"{file}: must have a label and a text column, separated by tab, comma, semicolon or |;"
        f" got one column, {_first_line(text)[:40].strip()!r}"
    )


def _separated(file: str, text: str) -> list[list[str]]:
    """As `_rows`, but no rows where the first line holds no separator, csv.Error where the
    quotation marks do not add up, and DataError where there is too much to read."""
    bare = re.sub(r'"[^"]*"', "", _first_line(text))
    best: list[list[str]] = []
    best_fit = 0.0
    fault: csv.Error | DataError | None = None
    for separator in (each for each in "\t,;|" if each in bare):
        try:
            rows = _parsed(file, text, separator)
        except (csv.Error, DataError) as error:
            fault = error
            continue
        if not rows:
            raise DataError(f"{file}: must hold messages; every row of it is blank.")
        if _fit(rows) > best_fit:
            best, best_fit = rows, _fit(rows)
    if fault and not best:
        raise fault
    return best


def _unquotable(file: str, fault: csv.Error) -> DataError:
    return DataError(
        f"{file}: must close every quotation mark that opens a cell, double those inside it, and"
        f" hold at most {csv.field_size_limit():,} characters in a cell; got {fault}. Save the"
        " table as CSV again, or as TSV without quotes."
    )


def _first_line(text: str) -> str:
    return text.lstrip("\r\n").split("\n", 1)[0]


def _fit(rows: Sequence[Sequence[str]]) -> float:
    """Share of the rows that are as wide as the first."""
    return sum(len(row) == len(rows[0]) for row in rows) / max(1, len(rows))


def _parsed(file: str, text: str, separator: str) -> list[list[str]]:
    if separator != "\t":
        return _read(file, text, separator, csv.QUOTE_MINIMAL)
    # In tab-separated files quotes are plain characters, unless the columns need them.
    plain = _read(file, text, separator, csv.QUOTE_NONE)
    if _fit(plain) == 1:
        return plain
    try:
        quoted = _read(file, text, separator, csv.QUOTE_MINIMAL)
    except csv.Error:
        return plain
    return quoted if _fit(quoted) > _fit(plain) else plain


def _read(file: str, text: str, separator: str, quoting: int) -> list[list[str]]:
    """The rows that are not blank. Of a file with too many nothing is kept beyond the limit: a cell
    takes many times its bytes in the file."""
    rows: list[list[str]] = []
    lines = io.StringIO(text, newline="")
    # Strict, since a mark that is not closed would swallow messages up to the next one.
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)  # type: ignore[arg-type]
    try:
        if few := text.count(separator) <= MOST_CELLS:
            filled = (row for row in reader if any(cell.strip() for cell in row))
            rows = list(islice(filled, MOST_ROWS + 1))
    except csv.Error as error:
        raise csv.Error(f"{error} (line {reader.line_num})") from error
    if not few or len(rows) > MOST_ROWS:
        raise DataError(
            f"{file}: must have at most {MOST_ROWS:,} rows and {MOST_CELLS:,} cells; got more."
            " Leave out rows without a label or a text, and columns that hold neither."
        )
    return rows


def _lines(text: str) -> list[str]:
    # Not splitlines(), which also breaks at characters that stand inside messages.
    return re.split(r"\r\n|\r|\n", text)


def _text_cells(file: str, text: str) -> list[str]:
    """The cells of the column that holds the texts, a header left out."""
    try:
        rows = _separated(file, text)
    except csv.Error as error:
        names = {cell.strip(' \r"') for cell in re.split(r"[\t,;|]", _first_line(text).lower())}
        if names & set(TEXT_NAMES):
            raise _unquotable(file, error) from error
        return _only_column(text)
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    for place in sorted(range(len(header)), key=lambda place: _rank(header[place])):
        if _names_texts(header[place]):
            _check_widths(file, rows)
            return [row[place] for row in rows[1:] if place < len(row)]
    if len({len(row) for row in rows}) != 1:
        return _only_column(text)
    below = [_distinct(cells) for cells in zip(*rows[1:], strict=True)]
    # Beside labels the rule of a table to train on holds.
    labelled = any(words and words <= SPAM_WORDS | HAM_WORDS for words in below)
    first = _is_header(rows, DataConfig()) if labelled else _names_columns(header)
    columns = list(zip(*rows[first:], strict=True))
    return list(max(columns, key=_letters, default=()))


def _rank(name: str) -> int:
    """The usual names in their order, and names of several words behind them."""
    return TEXT_NAMES.index(name) if name in TEXT_NAMES else len(TEXT_NAMES)


def _names_texts(cell: str) -> bool:
    """Whether a cell of a first row is the name of a text column: 'Text', 'Message body'."""
    words = re.split(r"[\s_]+", cell.strip().lower())
    return set(words) <= set(TEXT_NAMES)


def _names_columns(header: Sequence[str]) -> bool:
    """Whether the first row of a table without labels looks like names: single, different words."""
    words = all(re.fullmatch(r"[^\W\d]\w*", cell) for cell in header)
    return words and len(set(header)) == len(header) and not set(header) & (SPAM_WORDS | HAM_WORDS)


def _only_column(text: str) -> list[str]:
    """The messages of a table of one column: a line each, or more where they stand in quotes."""
    lines = io.StringIO(text, newline="")
    try:
        # No message holds a unit separator, so that only quotes are looked at here.
        cells = ["".join(row) for row in csv.reader(lines, delimiter="\x1f", strict=True)]
    except csv.Error:
        cells = _lines(text)
    return cells[1:] if cells and _names_texts(cells[0]) else cells


def _check_widths(file: str, rows: Sequence[Sequence[str]]) -> None:
    width = len(rows[0])
    for number, row in enumerate(rows[1:], 2):
        if any(cell.strip() for cell in row[width:]):
            raise DataError(
                f"{file}: every row must have the {width} columns of the first; row {number} has"
                f" {len(row)}. Put quotes around texts that contain the separator."
            )


# --- columns -> messages -----------------------------------------------------------------------


def _labelled(columns: Columns, file: str, config: DataConfig) -> list[Message]:
    label = _label_column(columns, file, config)
    text = _text_column(columns, label, file, config)
    labels = [cell.strip() for cell in columns[label]]
    spam = _spam_labels(labels, file, label, config.spam_label)
    topics = columns.get("topic", [""] * len(labels))
    rows = zip(columns[text], labels, topics, strict=True)
    return [
        Message(cell.strip(), word.lower() in spam, topic.strip())
        for cell, word, topic in rows
        if cell.strip() and word
    ]


def _named(columns: Columns, field: str, wanted: str, file: str) -> str:
    """The column called `wanted`, capitals aside."""
    for name in columns:
        if name.lower() == wanted.strip().lower():
            return name
    raise DataError(f"{field}: must be one of {_some(columns)} in {file}; got {wanted!r}")


def _some(names: Iterable[str]) -> str:
    """The first of `names`, as many as a sentence can hold."""
    first, more = [name[:40] for name in names], ""
    if len(first) > 8:
        more = f" and {len(first) - 8:,} more"
    return ", ".join(first[:8]) + more


def _label_column(columns: Columns, file: str, config: DataConfig) -> str:
    """The column of labels: as told, or by its name, or by its content."""
    if config.label_column:
        return _named(columns, "label_column", config.label_column, file)
    lower = {name.lower(): name for name in columns}
    named = [lower[name] for name in LABEL_NAMES if name in lower]
    found = {column: _distinct(columns[column]) for column in [*named, *columns]}
    # Two classes first: a column of nothing but 1 counts something rather than labels it.
    for fewest in (2, 1):
        for column, words in found.items():
            if len(words) >= fewest and words <= _known(config):
                return column
    if named:
        return named[0]
    told = config.spam_label.strip().lower()
    for column, words in found.items():
        if len(words) == 2 or told in words:
            return column
    raise DataError(
        f"{file}: must have a column of labels such as spam and ham; got the columns"
        f" {_some(columns)}. Name it in label_column."
    )


def _known(config: DataConfig) -> set[str]:
    return SPAM_WORDS | HAM_WORDS | {config.spam_label.strip().lower()} - {""}


def _text_column(columns: Columns, label: str, file: str, config: DataConfig) -> str:
    """The column of texts: as told, or by its name, or the one with the most to read."""
    if config.text_column:
        return _named(columns, "text_column", config.text_column, file)
    lower = {name.lower(): name for name in columns if name != label}
    for name in TEXT_NAMES:
        if name in lower:
            return lower[name]
    if not lower:
        raise DataError(f"{file}: must have a text column beside the labels in {label!r}")
    return max(lower.values(), key=lambda name: len(set(columns[name])) * _letters(columns[name]))


def _spam_labels(labels: Sequence[str], file: str, column: str, told: str) -> set[str]:
    """The labels, in lower case, that mean spam: the one told, or the one that is known."""
    found = _distinct(labels)
    told = told.strip().lower()
    shown = _some(sorted(found))
    if told and told not in found:
        raise DataError(f"spam_label: must be one of {shown} (column {column!r}); got {told!r}")
    if told:
        return {told}
    if not found <= SPAM_WORDS | HAM_WORDS:
        raise DataError(
            f"{file}: the column {column!r} holds {shown}; set spam_label to the one that means"
            " spam" + (", or label_column to another column." if len(found) > 2 else ".")
        )
    return found & SPAM_WORDS


def _distinct(cells: Iterable[str]) -> set[str]:
    return {cell.strip().lower() for cell in cells} - {""}


def _letters(cells: Iterable[str]) -> int:
    return sum(map(str.isalpha, "".join(cells)))


def _check_classes(messages: Sequence[Message], file: str) -> None:
    counts = {True: sum(message.is_spam for message in messages)}
    counts[False] = len(messages) - counts[True]
    for is_spam, name in ((True, "spam"), (False, "ham")):
        if counts[is_spam] < FEWEST_OF_A_CLASS:
            raise DataError(
                f"{file}: must hold at least {FEWEST_OF_A_CLASS} messages of each class; got"
                f" {counts[True]:,} spam and {counts[False]:,} ham, too little {name}"
            )
