"""Files and numbers that somebody made on purpose: each is refused in one line."""

import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from dasm_jax import host_memory, npz, records, report, synthetic_files
from dasm_jax.data import cache, images, load_dataset, tfds_files, validate
from dasm_jax.data.images import fit
from dasm_jax.errors import UserError
from dasm_jax.experiments import common
from dasm_jax.files import read_json, read_record
from dasm_jax.npz import open_npz
from dasm_jax.types import ArrayDataset
from tests import fuzz_npz
from tests.data_cases import fails, only, png_bytes
from tests.settings_cases import refuses, settings_with
from tests.test_data_folder import write_images
from tests.test_hostile_names import ESCAPE

DEEP = "[" * 100_000
HUGE = "1" + "0" * 400


def refused(path, match, dataset=None):
    with pytest.raises(UserError, match=match) as caught:
        fuzz_npz.load_set(
            path, dataset or fuzz_npz.small_dataset(), fuzz_npz.STATISTICS
        )
    assert str(caught.value).isprintable()


# --- archives -------------------------------------------------------------------------


def repacked(path, method, **changes):
    whole = path.with_name("whole.npz")
    whole.write_bytes(fuzz_npz.packed(**changes))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_unpacks_without_a_bound_is_not_unpacked(tmp_path, method):
    repacked(tmp_path / "bad.npz", method)
    refused(tmp_path / "bad.npz", r"another method than NumPy's; save it with")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": np.zeros((8, 4, 4, 1), np.longdouble)}, "neither numbers"),
        ({"mean": np.zeros(1, np.complex64)}, "neither numbers"),
        ({"images": np.zeros((8, 4, 4, 1), "f4,i4")}, "neither numbers"),
        ({"images": np.zeros((1,) * 9, np.uint8)}, "images has 9 axes"),
        ({"labels": np.full(8, 2**63, np.uint64)}, "labels holds 9223372036854775808"),
        ({"labels": np.full(8, -1)}, "labels holds -1"),
        ({"factor": np.uint64(2**64 - 1)}, "factor is 18446744073709551615"),
        ({"class_names": np.array(["cat", ESCAPE])}, r"a class '.x1b.2J"),
        ({"class_names": np.full(2, 2**32 - 1, np.uint32).view("<U1")}, "damaged|read"),
        ({"class_names": np.array(["cat", "x" * 100_000])}, "xxx … xxx.*config.data"),
        ({"formation": np.str_(ESCAPE)}, r"formation is '.x1b"),
        ({"mean": np.frombuffer(b"\1\0\xa0\x7f", "<f4")}, "normalised by mean .nan"),
        ({"images": np.full((8, 4, 4, 1), -np.inf, np.float16)}, "not finite"),
    ],
)
def test_fields_of_any_type_and_value(tmp_path, changes, match):
    (tmp_path / "bad.npz").write_bytes(fuzz_npz.packed(**changes))
    refused(tmp_path / "bad.npz", match)


def test_a_set_is_no_pipe_and_no_device(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("pipe.npz", "zero.npz"):
        refused(tmp_path / name, f"{name} .*(is no file|cannot be read)")


def test_text_without_width_is_not_allocated(tmp_path):
    text = repr({"descr": "<U0", "fortran_order": False, "shape": (10**18,)}).encode()
    npy = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("a.npy", npy)
    with (
        open_npz(tmp_path / "bad.npz") as reader,
        pytest.raises(ValueError, match="neither numbers of up to 64 bits nor text"),
    ):
        reader.header("a")


def test_headers_of_python_2_are_read_without_a_word(tmp_path):
    text = b"{'descr': '<i4', 'fortran_order': False, 'shape': (2L,), }"
    npy = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(8)
    with zipfile.ZipFile(tmp_path / "old.npz", "w") as archive:
        archive.writestr("a.npy", npy)
    with open_npz(tmp_path / "old.npz") as reader:
        assert reader.array("a").tolist() == [0, 0]


def test_no_archive_is_larger_than_the_memory(tmp_path, monkeypatch):
    assert 2**28 < host_memory.physical_memory() < 2**60
    path = tmp_path / "x.npz"
    path.write_bytes(fuzz_npz.packed())
    monkeypatch.setattr(npz, "physical_memory", lambda: 1000)
    refused(path, "more than this machine's memory")


def test_no_set_is_larger_than_the_memory_it_is_evaluated_in(tmp_path, monkeypatch):
    path, images = tmp_path / "x.npz", np.zeros((8, 4, 4, 1), np.uint8)
    path.write_bytes(fuzz_npz.packed(images=images))
    monkeypatch.setattr(synthetic_files, "physical_memory", lambda: 9 * images.size)
    fuzz_npz.load_set(path, fuzz_npz.small_dataset(), fuzz_npz.STATISTICS)
    monkeypatch.setattr(synthetic_files, "physical_memory", lambda: 9 * images.size - 1)
    refused(path, "images holds 8 images, which take 1,152 bytes to evaluate, more")


def test_a_member_cannot_claim_more_than_its_archive(tmp_path, monkeypatch):
    data = bytearray(fuzz_npz.packed())
    entry = data.index(b"PK\1\2")
    data[entry + 20 : entry + 24] = (2**30).to_bytes(4, "little")  # compressed size
    (tmp_path / "bad.npz").write_bytes(data)
    refused(tmp_path / "bad.npz", "would unpack to 1,0.* decompression bomb")


# --- images ---------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "photos" / "cat", 3)
    write_images(tmp_path / "photos" / "dog", 3)
    return tmp_path / "photos"


@pytest.mark.parametrize("format", ["EPS", "PPM", "TIFF", "ICO"])
def test_only_formats_that_are_asked_for(photos, format):
    with (photos / "dog" / "x.png").open("wb") as file:
        Image.new("L", (4, 6)).save(file, format)
    fails("dog/x.png cannot be decoded.*replace or remove", "folder", photos)


def test_a_sliver_is_not_blown_up(photos):
    write_images(photos / "dog", 1, size=(2, 60_000), start=8)
    load_dataset("folder", str(photos), size=8)
    fails(
        "dog/08.png cannot be decoded.*2x60000 pixels are too narrow to be cut to 1024",
        "folder",
        photos,
        size=1024,
    )
    with pytest.raises(ValueError, match="no pixels"):
        fit(Image.new("L", (0, 4)), 8, 8)


def test_images_larger_than_the_memory_are_not_allocated(photos, monkeypatch):
    monkeypatch.setattr(images, "physical_memory", lambda: 50)
    monkeypatch.setattr(np, "empty", None)  # calling it would fail
    fails("images of .*photos would take .* bytes.*config.data.size", "folder", photos)


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError, RecursionError])
def test_whatever_a_decoder_raises(photos, monkeypatch, error):
    def fail(*arguments, **options):
        raise error("a\nb")

    monkeypatch.setattr(images, "fit", fail)
    fails(f"cannot be decoded .{error.__name__}: a b", "folder", photos)


def test_links_out_of_a_set(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "set" / name, 2, size=(4, 4))
    (tmp_path / "set" / "cat" / "link.png").symlink_to("../dog/00.png")
    dataset, statistics = fuzz_npz.small_dataset(), fuzz_npz.STATISTICS
    found = fuzz_npz.load_set(tmp_path / "set", dataset, statistics)
    assert found.stored_counts == (3, 2)
    (tmp_path / "private.png").write_bytes(png_bytes(np.zeros((4, 4), np.uint8)))
    (tmp_path / "set" / "cat" / "out.png").symlink_to(tmp_path / "private.png")
    refused(tmp_path / "set", r"cat/out\.png is a link that leaves")
    (tmp_path / "set" / "cat" / "out.png").unlink()
    (tmp_path / "set" / "cat" / "link.png").unlink()
    (tmp_path / "set" / "dog").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "set", r"dog/00\.png is a link that leaves")


# --- cached data, descriptions of TFDS ------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [([0, 9], ("a", "b")), ([0, -1], ("a", "b")), ([0, 0], ("a",))],
)
def test_a_cache_file_with_a_right_hash_and_wrong_content(tmp_path, labels, names):
    part = ArrayDataset(np.zeros((2, 4, 4, 1), np.uint8), np.int32(labels))
    good = fuzz_npz.small_dataset()
    digest = validate.content_hash(part, part, names)
    bad = good._replace(train=part, test=part, class_names=names, content_hash=digest)
    key = cache.Key("folder", "x", ())
    assert cache.find(key, "state", tmp_path) is None
    cache.save(key, "state", bad, tmp_path)
    assert cache.find(key, "state", tmp_path) is None
    with pytest.raises(UserError, match="is damaged"):
        cache.find(key, None, tmp_path)
    only(tmp_path).write_bytes(b"PK")
    assert cache.find(key, "state", tmp_path) is None


def info_with(**changes):
    split = {"name": "train", "shardLengths": ["1"]}
    return {"name": "tiny", "fileFormat": "array_record", "splits": [split]} | changes


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "[]",
        "3",
        json.dumps(info_with(splits=[3])),
        json.dumps(info_with(splits={"train": 1})),
        json.dumps(info_with(splits=[{"name": "train", "shardLengths": ["x"]}])),
        json.dumps(info_with(name=3)),
        *(
            json.dumps(
                info_with(
                    splits=[
                        {"name": "train", "shardLengths": ["1"]}
                        | {"filepathTemplate": template}
                    ]
                )
            )
            for template in ("../../secret", "/etc/passwd", "{DATASET}/..")
        ),
    ],
)
def test_descriptions_that_tfds_did_not_write(tmp_path, text):
    (tmp_path / "dataset_info.json").write_text(text)
    prepared = tfds_files.Prepared(tmp_path, tmp_path, "tiny:1.0.0")
    with pytest.raises(UserError, match=r"dataset_info\.json"):
        tfds_files.shard_paths(prepared, {"config.data.train_split": "train"})


# --- records of earlier runs ----------------------------------------------------------


@pytest.mark.parametrize("text", [DEEP, "{", "\ufeff{}", '{"a": ' * 2000, "9" * 5000])
def test_json_that_cannot_be_read(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json is missing or damaged; remove it"):
        read_json(tmp_path / "x.json")
    assert read_record(tmp_path / "x.json") == {}
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json|x\.json"):
        report.write_report(tmp_path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", HUGE, '"1"', "true", "[]"])
@pytest.mark.parametrize("name", ["wall_seconds", "peak_bytes", "best"])
def test_kept_results_are_amounts(tmp_path, name, value):
    result = {"networks": [0.5], "best": [0.5], "wall_seconds": 1.0, "peak_bytes": 1}
    records.keep(tmp_path, {"a": 1}, result)
    assert records.find(tmp_path, {"a": 1}, 1) == result
    text = json.dumps(result | {name: 0}).replace(f'"{name}": 0', f'"{name}": {value}')
    whole = '{"identity": {"a": 1}, "result": ' + text + "}"
    only(tmp_path).write_text(whole)
    assert records.find(tmp_path, {"a": 1}, 1) is None


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"table": [{"mean": "x"}]}', HUGE])
def test_a_summary_of_another_shape(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)

    def show():
        summary = common.finished_summary(tmp_path)
        common.shown_again(tmp_path, summary, lambda s: str(common.render_table(s)))

    with pytest.raises(UserError, match=r"summary\.json is .* damaged; remove it"):
        show()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", DEEP),
        ("metrics.jsonl", '{"kind": "outer", "segment": 1, "distance": 1e999}\n' * 2),
        ("metrics.jsonl", '{"kind": "segment", "segment": [], "pool_sizes": [1]}'),
        ("summary.json", '{"table": [{"set": "a", "ipc": ' + HUGE + ', "mean": 1}]}'),
        ("summary.json", '{"table": [{"set": "a", "ipc": 1, "mean": "x", "std": 1}]}'),
        ("manifest.json", '{"wall_seconds": {"a": ' + HUGE + "}}"),
        ("config.json", '{"a":' * 900 + "1" + "}" * 900),
        ("synthetic.npz", "PK\5\6" + "\0" * 18),
    ],
)
def test_reports_of_anything_are_written_or_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    try:
        report.write_report(tmp_path)
    except UserError as error:
        refused = str(error)
    else:
        refused = ""
    assert refused == "" or (str(tmp_path) in refused and refused.isprintable())


def test_a_report_believes_no_archive(tmp_path):
    fields = fuzz_npz.whole_fields()
    for changes in (
        {"stored_pixels": np.zeros((2, 0, 4, 1), np.float32)},
        {"stored_pixels": np.zeros(2, np.float32)},
        {"class_names": np.array([{}], object)},
        {"factor": np.zeros((2, 2))},
    ):
        np.savez(tmp_path / "synthetic.npz", **{**fields, **changes})
        with pytest.raises(UserError) as caught:
            report.write_report(tmp_path)
        assert str(caught.value).isprintable()


# --- settings -------------------------------------------------------------------------


def test_numbers_larger_than_any_float():
    refuses("config.ipc", ipc=-(10**400))
    refuses("config.matcher.idc.image.lr", matcher__idc__image__lr=10**400)
    refuses("config.seed", seed=10**400)
    assert settings_with(ipc=10**400).ipc == 10**400  # no dataset has as many
