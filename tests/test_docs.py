"""Holds the README and the pins to what is really there."""

import contextlib
import fnmatch
import io
import re
import shlex
from pathlib import Path

import pytest

from lora_gpt.__main__ import build_parser, main

HOUSE = Path(__file__).parents[1]
README = HOUSE / "README.md"
REQUIREMENTS = (HOUSE / "requirements.txt", HOUSE / "tests" / "requirements.txt")


def readme() -> str:
    return README.read_text(encoding="utf-8")


def front_matter() -> dict[str, str]:
    """The plain fields of the front matter, values as they are written, quotes included."""
    found = re.match(r"---\n(.*?)\n---\n", readme(), re.S)
    assert found is not None, "README.md begins with its front matter"
    return dict(re.findall(r"^(\w+):[ ]*(.+?)\s*$", found[1], re.M))


def pins(path: Path) -> dict[str, str]:
    """Version by package; comments and lines without a package left out."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return {
        re.split(r"[=<>~!\[; ]", line)[0].lower(): line
        for line in lines
        if line and not line.startswith("-")
    }


# --- front matter and pins -----------------------------------------------------------------------


def test_the_space_runs_the_gradio_that_is_pinned():
    """Hugging Face installs sdk_version, everybody else requirements.txt."""
    version = front_matter()["sdk_version"].strip("\"'")
    assert pins(REQUIREMENTS[0])["gradio"] == f"gradio=={version}"


def test_the_python_version_is_quoted():
    """Without quotes 3.10 would be read as the number 3.1."""
    assert front_matter()["python_version"] == '"3.11"'


def test_the_app_file_exists():
    assert (HOUSE / front_matter()["app_file"]).is_file()


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.parent.name)
def test_every_pin_is_exact(path):
    """An application: what was tested is what is installed."""
    found = pins(path)
    assert found
    for package, line in found.items():
        assert re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==\d[\w.]*", line), package


def test_every_pin_says_what_it_is_for():
    """Each line of requirements.txt has its reason beside it."""
    for line in REQUIREMENTS[0].read_text("utf-8").splitlines():
        assert re.search(r"#\s*\w+", line), line


# --- the map of the rooms ------------------------------------------------------------------------


def section(title: str) -> str:
    """What stands under the heading `title`."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", readme(), re.M | re.S)
    assert found is not None, f"README.md has a section called {title}"
    return found[1]


def rooms() -> list[str]:
    """Every path that the map names, folders with a slash at their end.

    Read from a tree in a code block, one or more names a line before their description and each
    level indented, and from paths in backticks elsewhere in the section.
    """
    named, folders = [], [(-1, "")]
    fenced = re.findall(r"^```\w*\n(.*?)^```", section("The rooms"), re.M | re.S)
    for line in "".join(fenced).splitlines():
        line = re.sub("[│├└─]", " ", line)
        depth = len(line) - len(line.lstrip())
        names = []
        for word in line.split():
            if not re.fullmatch(r"[\w.*/-]+(\.\w+|/)", word):
                break
            names.append(word)
        while names and folders[-1][0] >= depth:
            folders.pop()
        named += [folders[-1][1] + name for name in names]
        if names and names[0].endswith("/"):
            folders.append((depth, folders[-1][1] + names[0]))
    prose = re.sub(r"^```.*?^```", "", section("The rooms"), flags=re.M | re.S)
    named += re.findall(r"`((?:lora_gpt|tests|assets|benchmarks)/[\w.*/-]*)`", prose)
    return [*dict.fromkeys(named)]


def modules() -> list[str]:
    """Every module of the house that does something."""
    own = HOUSE / "lora_gpt"
    files = [*own.glob("*.py"), *own.glob("core/*.py"), *own.glob("ui/*.py")]
    found = [path.relative_to(HOUSE).as_posix() for path in files if path.name != "__init__.py"]
    # How the bundled model was made is one room: the map may name it as a whole.
    return sorted([*found, "lora_gpt/core/pretrain/"])


def test_the_map_names_every_module():
    """Whoever adds a file adds its line."""
    named = rooms()
    assert [m for m in modules() if not any(fnmatch.fnmatch(m, each) for each in named)] == []


def test_every_room_of_the_map_exists():
    """Whoever removes a file removes its line."""
    named = rooms()
    assert named
    for each in named:
        found = [*HOUSE.glob(each.rstrip("/"))]
        assert found, f"{each} is in the map and not on the disk"
        assert not each.endswith("/") or all(path.is_dir() for path in found)


# --- pictures, files and commands ----------------------------------------------------------------


def test_the_pictures_are_there():
    """Everything that the README shows lies in the repository."""
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme())
    assert pictures
    for picture in pictures:
        assert (HOUSE / picture).is_file(), picture


def test_every_picture_is_described():
    """For readers who do not see it."""
    assert all(len(words) > 3 for words in re.findall(r"!\[([^]]*)\]\(", readme()))


def test_files_named_in_the_text_exist():
    """Paths in backticks, those of a run's folder and of the reader's own data left out."""
    prose = re.sub(r"^```.*?^```", "", readme(), flags=re.M | re.S)
    for path in re.findall(r"`((?:lora_gpt|tests|assets|benchmarks|\.ci)/[\w./-]+)`", prose):
        assert (HOUSE / path).exists(), path


def test_nothing_waits_to_be_written():
    """No placeholder of the draft is left."""
    assert re.findall(r"\b(?:RESULTS_\w+|TODO|FIXME|XXX)\b", readme()) == []


def commands() -> list[tuple[str, str]]:
    """(words, output shown below) of every command of ours that is shown with its output."""
    shown = re.findall(r"^```\w*\n\$ python -m lora_gpt (.*?)^```", readme(), re.M | re.S)
    found = []
    for block in shown:
        for part in re.split(r"^\$ python -m lora_gpt ", block, flags=re.M):
            words, _, output = part.partition("\n")
            found.append((words, output))
    return found


def test_commands_of_the_readme_are_commands():
    """Each parses, so that nobody copies what does not exist."""
    assert commands()
    for words, _ in commands():
        with contextlib.redirect_stderr(io.StringIO()) as told:
            try:
                build_parser().parse_args(_shell_words(words))
            except SystemExit:
                pytest.fail(f"{words}: {told.getvalue()}")


def _shell_words(words: str) -> list[str]:
    return shlex.split(words.partition(" | ")[0])


def test_counts_of_the_readme_are_what_is_printed(capsys):
    """Input and output stand together there: run it and compare, letter for letter."""
    counted = [each for each in commands() if each[0].startswith("count")]
    assert counted
    for words, output in counted:
        assert main(_shell_words(words)) == 0
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert [line.rstrip() for line in output.splitlines()] == printed
