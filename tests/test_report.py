"""``report.html``: complete, self-contained, and safe with any name."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dasm_jax import report_parts, run
from dasm_jax.errors import UserError
from dasm_jax.experiments import common
from dasm_jax.report import write_report
from dasm_jax.settings import from_config
from tests.small import small_config, small_dataset

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = "\"><img src=x onerror=alert(2)>'&$x^{_$"
HOSTILE = (SCRIPT, BREAKOUT)


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, workdir):
        super().__init__()
        self.source = (workdir / "report.html").read_text(encoding="utf-8")
        self.elements, self.words = [], []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def write_run(folder, names=("cat", "dog"), dataset="pets", **files):
    """Everything a distilling run leaves, small; a file given as None is left out."""
    pixels = np.linspace(-0.1, 1.1, 2 * 2 * 12 * 9 * 3, dtype=np.float32)
    arrays = {
        "stored_pixels": pixels.reshape(48, 3, 3, 3),
        "stored_labels": np.tile(np.repeat([0, 1], 12), 2).astype(np.int32),
        "stored_segments": np.repeat([1, 2], 24).astype(np.int32),
        "labels": np.zeros(48, np.int32),
        "factor": np.int32(1),
        "class_names": np.array(names),
    }
    rows = [
        {"set": name, "ipc": ipc, "mean": 0.5 + ipc / 100, "std": 0.01}
        | {
            "stored_bytes": 27 * ipc,
            "networks": [0.5],
            "accuracy_by_decile": [0.5] * 10,
        }
        for name in ("DASM", "Random", names[0])
        for ipc in (12, 24)
    ]
    rows.append({"set": "Full", "ipc": 90, "mean": 0.9, "std": 0.02, "networks": []})
    records = [
        {"kind": "outer", "seconds": 1, "segment": 1, "outer": 1, "distance": 4.5},
        {"kind": "outer", "seconds": 1, "segment": 2, "outer": 1, "distance": 3.5},
        {"kind": "segment", "seconds": 1, "segment": 1, "pool_sizes": [30, 40]},
        {"kind": "segment", "seconds": 1, "segment": 2, "pool_sizes": [30, 30]}
        | {"pool_share_by_difficulty_decile": [0.25] + [1.0] * 9},
        {"kind": "polish", "seconds": 1, "segment": 3, "pool_sizes": [18, 21]}
        | {"pool_share_by_difficulty_decile": [0.5] + [1.0] * 9},
        {"kind": "measures", "seconds": 1, "segment": 2, "diversity": 1.25}
        | {"diversity_of_union": None, "pool_share_by_decile": [0.1] * 10}
        | {"gradient_norm_share_by_decile": {"random": [0.1] * 10, "trained": None}},
    ]
    content = {
        "config.json": json.dumps(
            {"experiment": "distill", "ipc": 24, "seed": 3, "data": {"name": dataset}}
            | {"dasm": {"segments": 2}, "matcher": {"name": "idc"}}
        ),
        "summary.json": json.dumps(
            {"dataset": dataset, "table": rows, "seconds_matching": 1.5}
            | {"evaluation_networks": 3, "evaluation_steps": 600}
        ),
        "manifest.json": json.dumps(
            {"argv": ["main.py", f"--config.data.name={dataset}", "--workdir=a b"]}
            | {"date": "2026-01-02T03:04:05+0000", "git_commit": "abc123+dirty"}
            | {"versions": {"jax": "9.8.7"}, "devices": ["cpu: cpu", "cpu: cpu"]}
            | {"wall_seconds": {"distill": 3.0, "evaluate": 1.0}, "data_hash": "f00"}
            | {"peak_memory_bytes": {"process": 2_000_000, "gpu": None}}
        ),
        "metrics.jsonl": "".join(json.dumps(record) + "\n" for record in records),
    } | files
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "synthetic.npz", **arrays)
    for name, text in content.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return arrays


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report")
    write_run(workdir)
    write_report(workdir)
    return Page(workdir)


def pictures(page):
    return {
        image["alt"]: Image.open(
            io.BytesIO(
                base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
            )
        )
        for image in page.all("img")
    }


def test_everything_is_there(page):
    for text in (
        "pets · DASM, cat",
        "python main.py \\ --config.data.name=pets \\ '--workdir=a b'",
        "2026-01-02 03:04",
        "abc123+dirty",
        "jax 9.8.7",
        "62.0 ± 1.0",
        "90.0 ± 2.0",
        "pool of 30 to 40 real images per class",
        "Segment 2 12 images per class pool of 30 real images per class",
        "Polish of all segments pool of 18 to 21 real images per class",
        "dasm.segments",
        "distill",
        "3.0 s",
        "process 2 MB",
        "synthetic.npz",
        "diversity of union",
    ):
        assert text in page.text
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert len(labels) == 3 + 4  # curves; histograms, without the null ones
    assert "DASM: 62.0 ± 1.0 at 12, 74.0 ± 1.0 at 24" in labels[0]
    assert "segment 2: 3.5 to 3.5" in labels[-2]
    assert any("25 %, 100 %" in label for label in labels)
    assert any("50 %, 100 %" in label for label in labels)


def test_it_needs_nothing_outside_itself(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page.source)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/png;base64,", "#"))
    policy = next(meta for meta in page.all("meta") if "http-equiv" in meta)["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_ids_are_unique_and_found(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:href="|url\()#([^")]+)', page.source)
    assert set(wanted) <= set(ids)


def test_the_images_of_all_segments_to_the_pixel(tmp_path):
    arrays = write_run(tmp_path)
    write_report(tmp_path)
    found = pictures(Page(tmp_path))
    assert len(found) == 4
    for segment in (1, 2):
        for label, name in enumerate(("cat", "dog")):
            picture = found[f"12 synthetic images of class {name}, segment {segment}"]
            sheet = np.asarray(picture)
            assert sheet.shape == (6, 30, 4)
            where = (arrays["stored_segments"] == segment) & (
                arrays["stored_labels"] == label
            )
            expected = np.rint(np.clip(arrays["stored_pixels"][where], 0, 1) * 255)
            for i, image in enumerate(expected):
                row, column = divmod(i, 10)
                tile = sheet[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
                np.testing.assert_array_equal(tile[..., :3], image)
                assert (tile[..., 3] == 255).all()
            assert (sheet[3:, 6:, 3] == 0).all()  # nothing after the last one


def test_many_images_are_bounded_and_it_is_said(tmp_path, monkeypatch):
    write_run(tmp_path)
    write_report(tmp_path)
    assert "This page shows" not in Page(tmp_path).text
    monkeypatch.setattr(report_parts, "MOST_PIXELS", 9 * 2 * 2 * 5)
    write_report(tmp_path)
    page = Page(tmp_path)
    assert "shows the first 5 images of a class in each segment;" in page.text
    assert {picture.size for picture in pictures(page).values()} == {(15, 3)}
    monkeypatch.setattr(report_parts, "MOST_PIXELS", 1)
    write_report(tmp_path)
    page = Page(tmp_path)
    assert "shows the first 1 of 2 classes and the first 1 images" in page.text
    assert len(pictures(page)) == 2


def test_names_are_text(tmp_path):
    markdown = f"{SCRIPT}\n\n| {BREAKOUT} | b |\n|---|---|\n| {SCRIPT} | c |\n"
    write_run(tmp_path, HOSTILE, BREAKOUT, **{"table.md": markdown})
    (tmp_path / "a<b>.txt").write_text("")
    write_report(tmp_path)
    page = Page(tmp_path)
    assert not page.all("script")
    assert len(page.all("img")) == 4
    assert not [1 for _, attributes in page.elements if "onerror" in attributes]
    assert not page.all("b")
    for name in HOSTILE:
        assert page.text.count(name) >= 4  # as a class, in tables and figures
        assert f"12 synthetic images of class {name}, segment 2" in pictures(page)
    assert any(SCRIPT in svg["aria-label"] for svg in page.all("svg"))
    assert "a<b>.txt" in page.text


def test_class_names_do_not_turn_the_page_round(tmp_path):
    write_run(tmp_path, names=("c\u202eat", "do\x1bg"))
    write_report(tmp_path)
    shown = " ".join(pictures(Page(tmp_path)))
    assert "of class c\\u202eat, segment 1" in shown
    assert "of class do\\x1bg, segment 1" in shown


def test_same_files_same_bytes(tmp_path):
    pages = []
    for name in ("a", "b"):
        write_run(tmp_path / name)
        write_report(tmp_path / name)
        write_report(tmp_path / name)  # the page itself is no part of it
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


PARTS = ["config.json", "summary.json", "manifest.json", "metrics.jsonl"]


@pytest.mark.parametrize("missing", PARTS)
def test_a_part_may_be_missing(tmp_path, missing):
    write_run(tmp_path, **{missing: None})
    write_report(tmp_path)
    assert len(pictures(Page(tmp_path))) == 4


def test_an_empty_folder_has_a_report(tmp_path):
    write_report(tmp_path)
    page = Page(tmp_path)
    assert not page.all("svg")
    assert "kept no record of its command" in page.text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.jsonl", '{"kind": "outer"', "line 1 of .* is damaged; remove"),
        ("metrics.jsonl", "[]\n", "line 1 of .* is damaged"),
        ("metrics.jsonl", '{"kind": "x"}\n{}\n', "line 2 of .* is damaged"),
        ("summary.json", "{", "summary.json is missing or damaged; remove it to"),
        ("synthetic.npz", "PK", "npz is missing or damaged; remove .*summary.json to"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, text, said):
    write_run(tmp_path, **{name: text})
    with pytest.raises(UserError, match=said) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_disk_that_is_not_there(tmp_path):
    write_run(tmp_path)
    (tmp_path / "experts").symlink_to(tmp_path / "unmounted" / "experts")
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert 'experts</th><td class="n">cannot be read</td>' in page


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html: "):
        write_report(tmp_path)


@pytest.mark.slow
def test_a_run_ends_with_its_report(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    settings = from_config(small_config(evaluate__networks=1, dasm__segments=1))
    text = run.run(settings, str(tmp_path))
    assert text.endswith(str(tmp_path / "report.html"))
    first = (tmp_path / "report.html").read_bytes()
    assert "digits · IDC" in Page(tmp_path).text
    (tmp_path / "report.html").unlink()
    run.run(settings, str(tmp_path))
    assert (tmp_path / "report.html").read_bytes() == first
    (tmp_path / "report.html").write_text("mine")
    run.run(settings, str(tmp_path))
    assert (tmp_path / "report.html").read_text() == "mine"


# --- pieces ---------------------------------------------------------------------------


def test_seeds_are_averaged_and_architectures_kept_apart():
    rows = [
        {"set": "DASM", "ipc": 10, "seed": seed, "mean": mean, "std": 0.5}
        | {"architecture": name}
        for name in ("convnet", "vgg")
        for seed, mean in ((0, 0.5), (1, 0.7))
    ]
    found = report_parts.accuracies_of(rows)
    assert list(found.series) == ["DASM, convnet", "DASM, vgg"]
    ((ipc, mean, std),) = found.series["DASM, vgg"]
    assert (ipc, mean) == (10, pytest.approx(0.6))
    assert std == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert found.seeds == 2
    assert report_parts.accuracies_of(rows + rows[:1]) is None  # in what they differ?


def test_a_curve_says_its_seeds_and_shows_its_table_once(tmp_path):
    row = {"set": "IDC", "mean": 0.4321, "std": 0.01}
    summary = {
        "seeds": [0, 1],
        "evaluation_networks": 3,
        "table": [row | {"ipc": 1}, row | {"ipc": 10, "mean": 0.8765}],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "table.md").write_text("head\n\n| m | 1 |\n|---|---|\n| IDC | 43.2 |\n")
    write_report(tmp_path)
    text = Page(tmp_path).text
    assert "over 2 seeds, 3 networks each" in text
    assert text.count("43.2 ± 1.0") == 2  # the table, and every number
    assert "| 43.2 |" not in text
    assert "head" in text


def test_a_table_of_networks_is_its_own_document(tmp_path):
    row = {"architecture": "mlp", "images": "set", "mean": 0.4, "best_mean": 0.777}
    (tmp_path / "summary.json").write_text(json.dumps({"table": [row]}))
    (tmp_path / "table.md").write_text(
        "| m | 1 |\n|---|---|\n| set 1 | 40.0 |\n\n- a\n"
    )
    write_report(tmp_path)
    page = Page(tmp_path)
    assert "40.0" in page.text
    assert "0.777" not in page.text  # the best look is no result
    assert page.all("li")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "[]"),
        ("summary.json", '{"table": ["a"]}'),
        ("manifest.json", '{"wall_seconds": null}'),
        ("metrics.jsonl", '{"kind": "outer", "segment": 1}\n'),
    ],
)
def test_files_of_another_shape_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        write_report(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_many_sets_are_rows():
    rows = [
        {"set": f"m{i}", "ipc": ipc, "mean": 0.5, "std": None}
        for i in range(6)
        for ipc in (1, 1000)
    ]
    table = report_parts.accuracy_table(report_parts.accuracies_of(rows))
    assert table.columns == ["set, at IPC", "1", "1\u202f000"]
    assert table.rows[5] == ["m5", "50.0", "50.0"]


def test_a_markdown_table_becomes_cells():
    parts = report_parts.markdown_parts(
        "a\nb\n\n| x | y |\n|---|---|\n| 1 | |\n\n- n\n  m\n- o|\n"
    )
    assert parts[0] == "a\nb"
    assert parts[1][:2] == (["x", "y"], [["1", ""]])
    assert parts[2].points == ["n\n  m", "o|"]
