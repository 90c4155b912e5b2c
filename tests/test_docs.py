"""Laws of the documentation: it names all there is, and nothing that isn't there."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from engine import settings
from engine.cli.main import COMMANDS, cli
from engine.core.reasons import ENDINGS, REASONS
from engine.core.result import COLUMNS
from engine.identity_file import CONSENT_FIELDS, IDENTITY_FIELDS, find_identities
from engine.version import VERSION

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"), *ROOT.glob("tests/**/*.md")])
EXAMPLES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Examples that are run, by their first line; all others are parsed only.
RUN = [
    ("how-it-decides.md", '"text": "Blocked using zen.spamhaus.org"'),
    ("how-it-decides.md", '"text": "No such user"'),
    ("command-line.md", "Greylisted, try again"),
    ("command-line.md", "engine verify list.csv -o out.csv\n"),
    ("command-line.md", "engine policy explain hotmail.com --offline"),
    ("command-line.md", "engine check ada@normal.lab adda@normal.lab"),
    ("command-line.md", "engine identity check --lab"),
    ("identity.md", "engine identity init"),
    ("reputation.md", "engine rbl check 203.0.113.67 203.0.113.1 bad.example --lab"),
    ("reputation.md", "engine rbl verify-lists --lab"),
    ("command-line.md", "engine rbl check 203.0.113.1 --lab"),
    ("command-line.md", "engine check ada@normal.lab adda@normal.lab ada@null-mx.lab"),
    ("command-line.md", "engine monitor --once --lab"),
    ("README.md", "engine check ada@plain.lab"),
]


def commands(
    command: click.Command = cli, name: str = "engine", within: click.Context | None = None
) -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups included."""
    context = click.Context(command, info_name=name, parent=within)
    yield name, command
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from commands(below, f"{name} {each}", context)


COMMANDS_BY_NAME = dict(commands())
OPTIONS = [
    pytest.param(name, option, id=f"{name} {option.opts[-1]}")
    for name, command in COMMANDS_BY_NAME.items()
    for option in command.params
    if isinstance(option, click.Option)
]


def sections(page: Path) -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = re.split(r"^## (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


COMMAND_LINE = sections(DOCS / "command-line.md")
REFERENCE = sections(DOCS / "command-reference.md")


def examples() -> Iterator[tuple[Path, str, str]]:
    """(page, command line, what it prints) of each console block."""
    for page in EXAMPLES:
        for kind, block in FENCED.findall(page.read_text("utf-8")):
            if kind != "console":
                continue
            for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, _, printed = chunk.replace("\\\n", " ").partition("\n")
                yield page, line, printed


def engine_commands() -> Iterator[object]:
    """Each call of the engine in an example; pipes are taken apart."""
    for page, line, _ in examples():
        words = shlex.split(line, comments=True)
        while words:
            end = next((place for place, word in enumerate(words) if word in ("|", ">")), len(words))
            call, words = words[:end], words[end + 1 :]
            if call[0] == "engine":
                yield pytest.param(call[1:], id=f"{page.name}: {line[:60]}")


# --- commands and options


@pytest.mark.parametrize(("name", "command"), list(COMMANDS_BY_NAME.items()))
def test_every_command_has_help(name: str, command: click.Command) -> None:
    """`--help` says what a command does, and does not fail."""
    assert command.help
    result = CliRunner().invoke(cli, [*name.split()[1:], "--help"])
    assert result.exit_code == 0, result.output


def test_every_command_has_its_section() -> None:
    """The reference has a section named after each command, and none of a command that is gone."""
    assert list(REFERENCE)[1:] == list(COMMANDS_BY_NAME)


def test_what_is_made_from_the_code_is_fresh() -> None:
    """Command reference, metrics, reasons, modules and their picture are what `make docs` would write now."""
    made = subprocess.run(
        [sys.executable, "docs/made", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_is_in_the_change_log(name: str) -> None:
    """Nobody has to read the reference to learn that a command is there."""
    assert f"engine {name}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_has_help_and_is_documented(name: str, option: click.Option) -> None:
    """An option says what it does, by itself and in the section of its command."""
    assert option.help
    text = REFERENCE[name]
    for spelling in option.opts:
        assert re.search(rf"`{re.escape(spelling)}[ `]", text), f"{spelling} is not in the section {name}"


def test_no_option_is_documented_that_is_not_there() -> None:
    """No page keeps an option that was taken away."""
    there = {spelling for command in COMMANDS_BY_NAME.values() for param in command.params for spelling in param.opts}
    text = "\n".join((*REFERENCE.values(), *COMMAND_LINE.values()))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert named <= there | {"--help"}


# --- what programs rely on


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_is_explained(column: str) -> None:
    """Each column of the output has its row, in the order of the output."""
    assert f"| `{column}` | " in sections(DOCS / "how-it-decides.md")["The columns"]


def test_columns_are_explained_in_the_order_of_the_output() -> None:
    """The table is the heading of a CSV, read from top to bottom."""
    told = re.findall(r"^\| `(\w+)` \|", sections(DOCS / "how-it-decides.md")["The columns"], re.MULTILINE)
    assert told == list(COLUMNS)


def test_every_reason_is_in_its_table() -> None:
    """`docs/reasons.md` has a row for each code."""
    text = (DOCS / "reasons.md").read_text("utf-8")
    assert [code for code in REASONS if f"| `{code}` | " not in text] == []


def test_every_ending_is_explained() -> None:
    """What a resume takes up again is listed where resuming is explained."""
    text = sections(DOCS / "jobs.md")["Endings"]
    assert [code for code in ENDINGS if f"| `{code}` | " not in text] == []


def test_every_setting_is_documented() -> None:
    """Each key of the settings file stands there with its environment variable; each section by its name."""
    text = COMMAND_LINE["Settings"]
    for option in settings.OPTIONS:
        assert f"| `{option}` | `ENGINE_{option.upper()}` | " in text
    for section in settings.SECTIONS:
        assert f"`{section}`" in text


def test_every_environment_variable_is_documented() -> None:
    """Each variable that the code reads by name, or makes out of a flag's name, stands in the reference."""
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "engine").rglob("*.py"))
    named = set(re.findall(r"\bENGINE_[A-Z_]*[A-Z]\b", sources))
    parts = set(inspect.signature(find_identities).parameters) - {"settings", "file", "pools"}
    text = COMMAND_LINE["Settings"]
    assert [
        name for name in sorted(named | {f"ENGINE_{part.upper()}" for part in parts}) if f"`{name}`" not in text
    ] == []


def test_every_event_of_the_log_is_explained() -> None:
    """The table has each event that the code logs, and none that it doesn't."""
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "engine").rglob("*.py"))
    logged = set(re.findall(r"\blog\.(?:info|warning|error)\(\s*\"([a-z_]+)\"", sources))
    rows = re.findall(r"^\| (`[^|]*`) \|", COMMAND_LINE["The log"], re.MULTILINE)
    assert logged == {event for row in rows for event in re.findall(r"`(\w+)`", row)}


def test_every_field_of_identity_and_consent_is_shown() -> None:
    """The example files have each field."""
    blocks = "\n".join(
        block for kind, block in FENCED.findall((DOCS / "identity.md").read_text("utf-8")) if kind == "yaml"
    )
    assert [field for field in (*IDENTITY_FIELDS, *CONSENT_FIELDS) if f"\n{field}:" not in f"\n{blocks}"] == []


def test_the_change_log_knows_this_version() -> None:
    """The newest heading of the change log is the version of the code."""
    assert next(iter([title for title in sections(ROOT / "CHANGELOG.md") if title])) == VERSION


# --- links and examples


def anchors(page: Path) -> set[str]:
    """The names that headings have in a link."""
    text = FENCED.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A link inside the project names a file that is there, and a heading of it."""
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", FENCED.sub("", page.read_text("utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, heading = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target}"
        assert not heading or heading in anchors(found), f"{page.name}: {target}"


def test_every_page_can_be_found() -> None:
    """The front page of the documentation links each page; the site's navigation names each, runbooks too."""
    text = (DOCS / "index.md").read_text("utf-8")
    assert [page.name for page in DOCS.glob("*.md") if page.name != "index.md" and f"({page.name})" not in text] == []
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2])
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_site_asks_nobody() -> None:
    """No page, style or picture loads anything from elsewhere: readers are not told on."""
    loads = re.compile(r"!\[[^\]]*\]\(https?:|(?:src|href)=[\"']https?:|url\([\"']?https?:|@import")
    for file in (each for kind in ("md", "css", "svg", "html") for each in DOCS.rglob(f"*.{kind}")):
        assert not loads.search(FENCED.sub("", file.read_text("utf-8"))), file


def test_the_probe_identity_page_has_the_words_that_its_recipe_replaces() -> None:
    """Each word in capitals is named where the page tells how to fill it in, and nothing else is left to fill in."""
    page = (DOCS / "operate" / "probe-identity.html").read_text("utf-8")
    recipe = re.findall(r"s/([A-Z_]+)/", sections(DOCS / "compliance.md")["A page about you"])
    assert all(word in page for word in recipe)
    known = {"DATA", "EHLO", "FROM", "MAIL", "QUIT", "RCPT", "RSET", "STARTTLS", "UTF"}
    assert set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", page)) - known == set(recipe)


@pytest.mark.parametrize("words", list(engine_commands()))
def test_examples_are_commands_that_exist(words: list[str]) -> None:
    """What an example types has a command, and options that this command knows."""
    command: click.Command = cli
    context = click.Context(cli, info_name="engine")
    while True:
        given, rest, _ = command.make_parser(context).parse_args(list(words))
        missing = [p.name for p in command.params if p.required and given.get(p.name) in (None, (), "")]
        assert not missing
        if not isinstance(command, click.Group) or not rest:
            break
        below = command.get_command(context, rest[0])
        assert below is not None, f"there is no command {rest[0]}"
        context = click.Context(below, info_name=rest[0], parent=context)
        command, words = below, rest[1:]


@pytest.mark.parametrize(("name", "start"), RUN)
def test_examples_print_what_they_say(name: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cheap examples are run; where the page has `...`, anything may stand."""
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = [(line, printed) for page, line, printed in examples() if page.name == name and start in f"{line}\n"]
    (line, printed), *_ = [each for each in found if each[1]]
    typed, _, call = line.rpartition("| ")
    stdin = f"{shlex.split(typed)[1]}\n" if typed else ""
    result = CliRunner().invoke(cli, shlex.split(call)[1:], input=stdin)
    assert isinstance(result.exception, SystemExit | None), result.exception
    pattern = re.escape(settled(printed.strip())).replace(re.escape("..."), ".*")
    assert re.search(pattern, settled(result.output.strip()), re.DOTALL), result.output


def settled(text: str) -> str:
    """The text without what differs from run to run: seconds, ports, local parts of controls."""
    text = re.sub(r"^ *\d+\.\d{3}(?=  [SC*]: )", "0.000", text, flags=re.MULTILINE)
    return re.sub(r"(?<=\]:)\d+|\b[a-z]{6,}\d*(?=@plain\.lab)", "N", text)


def test_the_pages_speak_of_nothing_outside_the_project() -> None:
    """Documentation stands by itself: what it names is in the repository."""
    for page in PAGES:
        assert "/work/" not in page.read_text("utf-8"), page


def test_code_blocks_are_closed() -> None:
    """A page whose fence is left open is a page of code from there on."""
    for page in EXAMPLES:
        assert page.read_text("utf-8").count("\n```") % 2 == 0, page
