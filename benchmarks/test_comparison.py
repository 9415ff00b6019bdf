"""What the README says of the peers is what they are seen to do; of those that are installed, in these versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compared import ALL, Compared, Idempo, present, quiet
from benchmarks.comparison import QUESTIONS, main, size

README = Path(__file__).parents[1] / "README.md"


def written() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the versions, and the answers by question and name, of the table in the README."""
    lines = README.read_text(encoding="utf-8").partition("<!-- comparison -->")[2].partition("<!-- end")[0].split("\n")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("|")]
    heads = [head.rsplit(" ", 1) for head in rows[0] if head]
    names = [name for name, _ in heads]
    return dict(map(tuple, heads)), {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows[2:]}  # type: ignore[arg-type]


def test_the_table_asks_every_question_of_every_library() -> None:
    versions, answers = written()
    assert list(versions) == [library.name for library in ALL]
    assert list(answers) == list(QUESTIONS)


@pytest.mark.realtime
@pytest.mark.parametrize("library", ALL, ids=lambda library: library.name)
def test_the_table_tells_what_is_seen(library: type[Compared]) -> None:
    """Each cell of a library's column."""
    versions, answers = written()
    if library is not Idempo and present().get(library.name) != versions[library.name]:
        pytest.skip(f"{library.package} {versions[library.name]} is not installed")
    with quiet():
        seen = {title: question(library) for title, question in QUESTIONS.items()}
    assert seen == {title: by_name[library.name] for title, by_name in answers.items()}


def test_the_peers_are_smaller() -> None:
    """As the README says; all of those that are installed."""
    here = present()
    sizes = {library.name: size(library) for library in ALL if library.name in here}
    assert sizes == {} or max(sizes, key=sizes.__getitem__) == "idempo"


@pytest.mark.parametrize("arguments", [[], ["--installed"]])
def test_peers_that_are_missing_are_named(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that lacks columns is printed to nobody who did not ask for it."""
    monkeypatch.setattr("benchmarks.comparison.present", lambda: {"idempo": "1", "Powertools": "2"})
    monkeypatch.setattr("benchmarks.comparison.table", lambda: "the table")
    monkeypatch.setattr("benchmarks.comparison.size", lambda _: 7)
    assert main(arguments) == (0 if arguments else 1)
    told = capsys.readouterr()
    for package in ("exactly-once", "once-kernel", "idemkit", "cachetools"):
        assert f"{package} is not installed here\n" in told.err
    assert "aws-lambda-powertools" not in told.err
    assert told.out == ("the table\nidempo: 7 lines\nPowertools: 7 lines\n" if arguments else "")
    assert ("--installed" in told.err) is not bool(arguments)


def test_with_all_peers_the_table_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.comparison.present", lambda: {library.name: "1" for library in ALL})
    monkeypatch.setattr("benchmarks.comparison.table", lambda: "the table")
    monkeypatch.setattr("benchmarks.comparison.size", lambda _: 7)
    assert main([]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("the table\n")
    assert told.err == ""
