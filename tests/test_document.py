"""Sections of a Markdown file."""

import pytest

from dasm_jax.errors import UserError
from dasm_jax.experiments.document import check_document, renew_section


def section(name, text):
    return f"<!-- {name} -->\n{text}<!-- end of {name} -->\n"


def test_a_new_document(tmp_path):
    document = tmp_path / "results.md"
    renew_section(document, "matchers: a", "| 1 |\n")
    assert document.read_text() == section("matchers: a", "| 1 |\n")


def test_a_section_is_replaced_where_it_stands(tmp_path):
    document = tmp_path / "results.md"
    head, between, tail = "# Ü\n\ntext  \n", "\nbetween\n\n\n", "\nend without a break"
    old = head + section("a", "old\nlonger\n") + between + section("a b", "B\n") + tail
    document.write_text(old, encoding="utf-8")
    renew_section(document, "a", "new ±\n")
    expected = head + section("a", "new ±\n") + between + section("a b", "B\n") + tail
    assert document.read_text(encoding="utf-8") == expected
    renew_section(document, "a", "new ±\n")
    assert document.read_text(encoding="utf-8") == expected
    renew_section(document, "a b", "C\n")
    assert document.read_text(encoding="utf-8") == expected.replace("B\n", "C\n")


def test_a_section_is_appended_to_what_is_there(tmp_path):
    document = tmp_path / "results.md"
    document.write_text("# Title\n")
    renew_section(document, "a", "1\n")
    renew_section(document, "b", "2\n")
    expected = "# Title\n\n" + section("a", "1\n") + "\n" + section("b", "2\n")
    assert document.read_text() == expected


def test_line_breaks_around_a_section_are_left_alone(tmp_path):
    document = tmp_path / "results.md"
    document.write_bytes(b"# Title\r\n\r\ntext\r\n")
    renew_section(document, "a", "1\n")
    assert document.read_bytes().startswith(b"# Title\r\n\r\ntext\r\n")


def test_a_document_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere.results\.md"):
        renew_section(tmp_path / "nowhere" / "results.md", "a", "1\n")
    with pytest.raises(UserError, match="cannot read"):
        renew_section(tmp_path, "a", "1\n")
    binary = tmp_path / "binary.md"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot read"):
        renew_section(binary, "a", "1\n")
    assert binary.read_bytes() == b"\xff\xfe"


def test_a_document_is_checked_ahead(tmp_path):
    check_document(tmp_path / "new.md", "config.x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"^config\.x: cannot write .*nowhere"):
        check_document(tmp_path / "nowhere" / "results.md", "config.x")
    with pytest.raises(UserError, match=r"^config\.x: cannot read"):
        check_document(tmp_path, "config.x")
