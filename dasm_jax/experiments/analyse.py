"""Analysis: what finished runs measured of themselves, side by side.

Is the gradient biased to easy images, and the set? Does that move from segment to
segment? Which test images gain?
"""

import os
from pathlib import Path

from dasm_jax.errors import UserError
from dasm_jax.experiments import analysis_table
from dasm_jax.experiments.analysis_rows import Row, from_csv, read_csv, rows_of, to_csv
from dasm_jax.experiments.common import written
from dasm_jax.experiments.document import as_text, check_document, renew_section, slug
from dasm_jax.files import make_folder, write_all, write_json
from dasm_jax.schema import Settings
from dasm_jax.workdir import PhaseClock, claim_workdir, manifest


def run(settings: Settings, workdir: Path) -> str:
    """Read the runs, write rows, tables and figures; returns the text for the terminal.

    Raises:
      UserError: there is no such run, or they are not measured alike.
    """
    c = settings.analyse
    if not c.name.strip():
        raise UserError("config.analyse.name is empty; name the analysis")
    document = _home(c.document)
    if c.document:
        check_document(document, "config.analyse.document")
    if c.rows:
        rows = read_csv(_home(c.rows))
    else:
        found = rows_of(folders_of(c.runs))
        # As the file has them, so that the file gives the same tables again.
        rows = from_csv(to_csv(found), "rows.csv")
    claim_workdir(workdir, settings)
    write_json(workdir / "manifest.json", manifest("", PhaseClock().seconds))
    return _publish(c.name, rows, workdir, document if c.document else None)


def _home(path: str) -> Path:
    return Path(os.path.expanduser(path))


def folders_of(lines: tuple[str, ...]) -> dict[str, list[Path]]:
    """Read ``"name: workdir, workdir, …"``.

    Raises:
      UserError: a line is not understood, or there is none.
    """
    folders: dict[str, list[Path]] = {}
    for line in lines:
        name, colon, rest = line.partition(":")
        name = " ".join(name.split())
        found = [part.strip() for part in rest.split(",") if part.strip()]
        if not (name and colon and found):
            raise UserError(
                f"config.analyse.runs: {line!r} must be a name, a colon, and the "
                "workdirs of its seeds with commas between"
            )
        if name in folders:
            raise UserError(f"config.analyse.runs has two lines for {name!r}")
        folders[name] = [_home(each) for each in found]
    if not folders:
        raise UserError(
            "config.analyse.runs is empty; name finished runs, such as "
            '("IDC: runs/idc_0, runs/idc_1", "DASM: runs/dasm_0, runs/dasm_1")'
        )
    return folders


def _publish(name: str, rows: list[Row], workdir: Path, document: Path | None) -> str:
    from dasm_jax import plots  # here, for matplotlib takes a while to import

    title = f"{name}, {rows[0].dataset}"
    markdown = analysis_table.render_markdown(rows)
    bias = plots.line_panels(
        analysis_table.bias_panels(rows),
        x_label="difficulty decile",
        title=title,
    )
    diversity = plots.line_curves(
        analysis_table.diversity_lines(rows),
        x_label="images per class",
        y_label="mean distance inside a class",
        title=title,
    )
    files = {
        "rows.csv": to_csv(rows).encode(),
        "table.md": markdown.encode(),
        "bias.png": plots.to_png(bias),
        "diversity.png": plots.to_png(diversity),
    }
    if gains := analysis_table.gain_panels(rows):
        figure = plots.intervals(gains, "points of accuracy", title=title)
        files["gains.png"] = plots.to_png(figure)
    write_all(workdir, files)
    write_json(workdir / "summary.json", analysis_table.summary_of(rows))
    paths = written(workdir, *files)
    if document is not None:
        folder = document.parent / "analysis"
        make_folder(folder)
        begin = slug(title)
        named = {f"{begin}_{n}": files[n] for n in files if n != "table.md"}
        write_all(folder, named)
        text = markdown + "".join(
            f"\n![{as_text(title)}](analysis/{n})" for n in named if n.endswith("png")
        )
        source = f"\n\nRows: [{begin}_rows.csv](analysis/{begin}_rows.csv).\n"
        renew_section(document, f"analysis: {title}", text + source)
        paths += f"\n      {document}\n      {folder}"
    return f"{analysis_table.render_text(rows)}\n\n{paths}"
