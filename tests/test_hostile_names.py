"""Names that somebody made on purpose: printable text wherever they are shown."""

from pathlib import Path

import numpy as np
import pytest

from dasm_jax import figures
from dasm_jax.errors import LONGEST_MESSAGE, NonFiniteError, UserError, printable
from dasm_jax.experiments import compare_table, curve_table, evaluate_table
from dasm_jax.experiments.document import as_text, renew_section
from dasm_jax.report_parts import Bullets, Table, markdown_parts
from dasm_jax.run_log import RunLog
from tests.settings_cases import settings_with

ESCAPE = "\x1b[2J\x1b]0;owned\x07"
NAMES = (
    ESCAPE,
    "two\nlines",
    "right\u202eleft",
    "\ud800half",
    "a\0b",
    "<script>alert(1)</script>",
    "| a | b |",
    "--> <!-- end of x -->",
    "[x](javascript:alert(1))",
    "`code` *bold* \\| &lt;",
    "../../etc/passwd",
    "n" * 5000,
)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_one_line_that_leaves_the_terminal_alone(name):
    for error in (UserError(f"{name} is x; mend it"), NonFiniteError(name, None)):
        assert str(error).isprintable()
        assert len(str(error)) < 8 * LONGEST_MESSAGE
    assert str(UserError(f"{name} is x; mend it")).endswith("is x; mend it")
    assert printable("Größe – 3.0 ± 1…") == "Größe – 3.0 ± 1…"


@pytest.mark.parametrize("name", NAMES)
def test_logs_are_lines(tmp_path, name):
    log = RunLog(tmp_path, 1)
    log.line(name)
    log.advance(name, False)
    log.close()
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 2
    assert lines[0].isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_names_in_markdown_are_text(tmp_path, name):
    text = as_text(name)
    assert not set("<>|[]`*\\\n") & set(text)
    shown = printable(name)
    table, points, paragraph = markdown_parts(
        f"| a | {text} |\n|---|---|\n| {text} | 1 |\n\n- {text}\n\nof {text}\n"
    )
    assert isinstance(table, Table)
    assert table.columns == ["a", shown.strip()]
    assert table.rows == [[shown.strip(), "1"]]
    assert isinstance(points, Bullets)
    assert points.points == [shown]
    assert paragraph == f"of {shown}"
    document = tmp_path / "d.md"
    document.write_text("before\n")
    for _ in range(2):
        renew_section(document, name, "inside\n")
    content = document.read_text()
    assert content.count("inside") == 1
    assert content.count("<!--") == content.count("-->") == 2


@pytest.mark.parametrize("name", NAMES)
def test_tables_for_documents_name_nothing_raw(name):
    s = settings_with(data__name=name)
    row = {"architecture": "mlp", "augmentation": "none", "images": "set", "sets": [1]}
    row |= {"steps": 1, "stored_bytes": 1, "failure": name}
    of_set = {"path": f"/x/{name}/synthetic.npz", "stored_images": 1, "factor": 1}
    of_set |= {"stored_bytes": 1, "decoded_images": 1, "steps": 1}
    recipe = {"cutmix": 0, "augment": "none", "batch": 1, "lr": 0.1}
    summary = {"dataset": name, "evaluation_networks": 1, "looks": 1, "sets": [of_set]}
    summary |= {"recipes": {"none": recipe}, "table": [row]}
    cell = compare_table.Cell("Random", "", 10, 0, "baselines", ())
    for text in (
        evaluate_table.markdown(summary),
        compare_table.render(s, {cell: {"failure": name}}),
        curve_table.render_markdown(s, [], [], [name]),
    ):
        assert not set("<>[]\x1b\0\u202e`*") & set(text.replace("*: kept", ""))
        for line in text.split("\n"):
            assert line.isprintable()
            assert line.startswith("|") == line.endswith("|")


def test_names_do_not_become_paths(tmp_path):
    pixels = np.zeros((len(NAMES), 1, 4, 4, 1), np.float32)
    figures.save_segment_grid(
        tmp_path / "x.png", pixels, NAMES, NAMES[0], None, NAMES[1]
    )
    assert [path.name for path in Path(tmp_path).iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
