"""Analysis: what finished runs measured of themselves, side by side.

Is the gradient biased to easy images, and the set? Does that move from segment to
segment? Which test images gain? Section 7 of the method.
"""

from pathlib import Path
from typing import Any

from dasm_jax.errors import UserError
from dasm_jax.experiments import analysis_table
from dasm_jax.experiments.analysis_rows import Row, from_csv, read_csv, rows_of, to_csv
from dasm_jax.experiments.common import written
from dasm_jax.experiments.document import check_document, renew_section, slug
from dasm_jax.files import make_folder, write_all, write_json
from dasm_jax.schema import Settings
from dasm_jax.workdir import PhaseClock, claim_workdir, manifest


def run(settings: Settings, workdir: Path) -> str:
    """Read the runs, write rows, tables and figures; returns the text for the terminal.

    Raises:
      UserError: there is no such run, or they are not measured alike.
    """
    c = settings.analyse
    document = Path(c.document).expanduser()
    if c.document:
        check_document(document, "config.analyse.document")
    if c.rows:
        rows = read_csv(Path(c.rows).expanduser())
    else:
        found = rows_of(folders_of(c.runs))
        # As the file has them, so that the file gives the same tables again.
        rows = from_csv(to_csv(found), "rows.csv")
    claim_workdir(workdir, settings)
    write_json(workdir / "manifest.json", manifest("", PhaseClock().seconds))
    return _publish(rows, workdir, document if c.document else None)


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
        folders[name] = [Path(each).expanduser() for each in found]
    if not folders:
        raise UserError(
            "config.analyse.runs is empty; name finished runs, such as "
            '("IDC: runs/idc_0, runs/idc_1", "DASM: runs/dasm_0, runs/dasm_1")'
        )
    return folders


def _publish(rows: list[Row], workdir: Path, document: Path | None) -> str:
    from dasm_jax import plots  # here, for matplotlib takes a while to import

    dataset = rows[0].setup.split(";")[0]
    markdown = analysis_table.render_markdown(rows)
    bias = plots.line_panels(
        analysis_table.bias_panels(rows),
        x_label="difficulty decile of the class",
        y_label="%",
        title=dataset,
    )
    diversity = plots.line_curves(
        analysis_table.diversity_lines(rows),
        x_label="images per class",
        y_label="mean distance",
        title=f"{dataset}: diversity inside a class",
    )
    files = {
        "rows.csv": to_csv(rows),
        "table.md": markdown.encode(),
        "bias.png": plots.to_png(bias),
        "diversity.png": plots.to_png(diversity),
    }
    if gains := analysis_table.gain_panels(rows):
        figure = plots.intervals(gains, "points of accuracy", title=dataset)
        files["gains.png"] = plots.to_png(figure)
    write_all(workdir, files)
    write_json(workdir / "summary.json", _summary(rows))
    paths = written(workdir, *files)
    if document is not None:
        name = slug(dataset)
        folder = document.parent / "analysis"
        make_folder(folder)
        named = {
            f"{name}_{file}": content
            for file, content in files.items()
            if not file.endswith(".md")
        }
        write_all(folder, named)
        pictures = [
            f"![{file[:-4].replace('_', ' ')}](analysis/{file})"
            for file in named
            if file.endswith(".png")
        ]
        source = f"Rows: [{name}_rows.csv](analysis/{name}_rows.csv).\n"
        text = "\n".join([markdown, *pictures, "", source])
        renew_section(document, f"analysis: {dataset}", text)
        paths += f"\n      {document}\n      {folder}"
    return f"{analysis_table.render_text(rows)}\n\n{paths}"


def _summary(rows: list[Row]) -> dict[str, Any]:
    return {
        "dataset": rows[0].setup.split(";")[0],
        "setup": rows[0].setup,
        "seeds": sorted({row.seed for row in rows}),
        "gains_by_decile": {
            name: [each._asdict() for each in found]
            for name, found in analysis_table.gains(rows).items()
        },
    }
