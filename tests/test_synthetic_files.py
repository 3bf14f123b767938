"""Sets from disk: what is read, and everything that is refused in one line."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from dasm_jax import export, npz, synthetic_files
from dasm_jax.errors import UserError
from dasm_jax.parameterization import make_parameterization
from dasm_jax.synthetic_files import find_sets, load_set
from dasm_jax.types import SyntheticSet
from tests.small import slow_but, small_problem


@pytest.fixture(scope="module")
def problem():
    return small_problem()


def make_file(path, problem, factor=2, ipc=3, kind="single", segments=None):
    count = 2 * ipc
    if segments is None:
        segments = np.ones(count, np.int32)
    pixels = np.linspace(0, 1, count * 64, dtype=np.float32).reshape(count, 8, 8, 1)
    export.save_synthetic(
        path,
        SyntheticSet(
            pixels,
            np.repeat(np.arange(2, dtype=np.int32), ipc),
            segments,
        ),
        parameterization=make_parameterization(kind, factor, (8, 8)),
        statistics=problem.statistics,
        class_names=problem.dataset.class_names,
    )
    return path


def fields_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def whole(tmp_path, problem):
    return fields_of(make_file(tmp_path / "whole.npz", problem))


def load(path, problem):
    return load_set(path, problem.dataset, problem.statistics)


def refuse(path, problem, match):
    with pytest.raises(UserError, match=match) as caught:
        load(path, problem)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value) or "evaluate.synthetic" in str(caught.value)


# --- what is read ---------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2])
def test_our_own_file(tmp_path, problem, factor):
    path = make_file(tmp_path / "synthetic.npz", problem, factor)
    found = load(path, problem)
    arrays = fields_of(path)
    np.testing.assert_array_equal(found.decoded.images, arrays["images"])
    np.testing.assert_array_equal(found.decoded.labels, arrays["labels"])
    assert len(found.decoded.labels) == 6 * factor**2
    # What is stored counts, whatever it decodes to.
    assert found.stored_bytes == 6 * 64
    assert found.stored_counts == (3, 3)
    assert found.factor == factor


def test_images_and_labels_alone(tmp_path, problem):
    bytes_ = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1)
    labels = np.array([1, 0, 1], np.uint8)
    np.savez(tmp_path / "u8.npz", images=bytes_, labels=labels)
    np.savez_compressed(
        tmp_path / "f64.npz", images=bytes_ / 255, labels=labels.astype(np.int64)
    )
    found = [load(tmp_path / name, problem) for name in ("u8.npz", "f64.npz")]
    for each in found:
        assert each.decoded.images.dtype == np.float32
        assert each.decoded.labels.dtype == np.int32
        np.testing.assert_allclose(each.decoded.images, bytes_ / 255, atol=1e-7)
        assert each.stored_bytes == 3 * 64
        assert each.stored_counts == (1, 2)
        assert each.factor == 1
    assert found[0].content_hash != found[1].content_hash


def test_a_folder_of_images(tmp_path, problem):
    shades = {"1": (10, 20), "0": (30,)}
    for name, values in shades.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for i, value in enumerate(values):
            image = Image.fromarray(np.full((8, 8), value, np.uint8))
            image.save(tmp_path / "set" / name / f"{i}.png")
    found = load(tmp_path / "set", problem)
    assert found.decoded.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(
        found.decoded.images[:, 0, 0, 0] * 255, [30, 10, 20], rtol=1e-6
    )
    assert found.stored_bytes == 3 * 64
    (tmp_path / "set" / "0").rename(tmp_path / "set" / "horse")
    refuse(tmp_path / "set", problem, "another dataset's.*'horse'")


def test_where_sets_are_looked_for(tmp_path, problem, monkeypatch):
    (tmp_path / "run" / "images").mkdir(parents=True)
    make_file(tmp_path / "run" / "synthetic.npz", problem)
    make_file(tmp_path / "other.npz", problem)
    monkeypatch.chdir(tmp_path)
    assert find_sets("run, other.npz ,") == [
        tmp_path / "run" / "synthetic.npz",
        tmp_path / "other.npz",
    ]
    with pytest.raises(UserError, match=r"there is no .*nothing\.npz"):
        find_sets("other.npz,nothing.npz")
    with pytest.raises(UserError, match="twice"):
        find_sets("run,run/synthetic.npz")


def test_a_folder_of_sets_stands_for_all_of_them(tmp_path, problem):
    (tmp_path / "table" / "sets").mkdir(parents=True)
    (tmp_path / "classes" / "0").mkdir(parents=True)
    first, second = (
        make_file(tmp_path / "table" / "sets" / name, problem)
        for name in ("herding_ipc10_seed0.npz", "idc_ipc10_seed0.npz")
    )
    (tmp_path / "table" / "sets" / "idc_ipc10_seed0.json").write_text("{}")
    assert find_sets(f"{tmp_path}/table") == [first, second]
    assert find_sets(f"{tmp_path}/table/sets") == [first, second]
    assert find_sets(f"{tmp_path}/classes") == [tmp_path / "classes"]
    with pytest.raises(UserError, match=r"names .*idc_ipc10_seed0\.npz twice"):
        find_sets(f"{second}, {tmp_path}/table")


def test_the_hash_is_of_what_networks_see(tmp_path, problem):
    first, same, other = (
        load(make_file(tmp_path / name, problem, ipc=ipc), problem)
        for name, ipc in (("a.npz", 3), ("b.npz", 3), ("c.npz", 2))
    )
    assert first.content_hash == same.content_hash != other.content_hash


# --- what is refused ------------------------------------------------------------------

NAN = np.full((24, 8, 8, 1), np.nan, np.float32)
IMAGES = np.zeros((24, 8, 8, 1), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "no field images"),
        ({"labels": None}, "no field labels"),
        ({"stored_labels": None}, "no field stored_labels"),
        ({"stored_pixels": None}, "no field stored_pixels"),
        ({"std": None}, "no field std"),
        ({"images": IMAGES[0]}, "shape"),
        ({"images": IMAGES[:0]}, "at least one image"),
        ({"images": np.zeros((24, 28, 28, 1), np.float32)}, "28x28x1.*8x8x1"),
        ({"images": np.zeros((24, 1, 8, 8), np.float32)}, "channels first"),
        ({"stored_pixels": np.zeros((6, 4, 4, 1), np.float32)}, "4x4x1"),
        ({"images": IMAGES.astype(np.int64)}, "type int64"),
        ({"images": NAN}, "not finite"),
        ({"images": IMAGES - 2}, "undo their normalisation"),
        ({"stored_pixels": np.full((6, 8, 8, 1), 255.0)}, "undo their normalisation"),
        ({"labels": np.zeros(3, np.int32)}, r"labels is int32\[3\]"),
        ({"labels": np.zeros((24, 2), np.float32)}, r"labels is float32\[24, 2\]"),
        ({"labels": np.full(24, 2, np.int32)}, "holds 2, outside 0 … 1"),
        ({"labels": np.full(24, -1, np.int32)}, "holds -1"),
        ({"stored_labels": np.zeros(6, np.int32)}, "class 1 is in only one"),
        ({"factor": np.int32(0)}, "factor is 0"),
        ({"factor": np.ones(3)}, "one whole number"),
        ({"class_names": np.array(["cat", "dog"])}, "another dataset's.*'cat' for '0'"),
        ({"class_names": np.array(["0", "1", "2"])}, "another dataset's"),
        ({"mean": np.float32([0.9])}, r"config\.data\.mean"),
        ({"std": np.float32([np.nan])}, r"config\.data\.std"),
        ({"mean": np.zeros(3, np.float32)}, "another dataset's"),
        ({"zca_matrix": np.eye(64)}, r"config\.data\.zca=True"),
        ({"images": np.array([{}] * 24)}, "never unpickled"),
        ({"class_names": np.array(["0", None])}, "never unpickled"),
    ],
)
def test_a_file_that_is_not_as_it_should_be(tmp_path, problem, whole, changes, message):
    arrays = {k: v for k, v in {**whole, **changes}.items() if v is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    refuse(tmp_path / "bad.npz", problem, message)


SEGMENTS = np.resize(np.array([1, 2, 2], np.int32), 200)


@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("ipc", slow_but([3, 100], 3))
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("kind", ["single", "multi", "bound"])
def test_counts_as_a_formation_gives_them(
    tmp_path, problem, kind, factor, ipc, segments
):
    if segments is not None:
        segments = segments[: 2 * ipc]
    path = make_file(tmp_path / "x.npz", problem, factor, ipc, kind, segments)
    assert load(path, problem).stored_counts == (ipc, ipc)
    arrays = fields_of(path)
    # Without an image networks see, or with one stored image of another segment.
    fewer = {name: arrays[name][1:] for name in ("images", "labels", "segments")}
    np.savez(path, **{**arrays, **fewer})
    refuse(path, problem, rf"class 0 of segment 1 has .* factor {factor} and .* give ")
    if segments is not None and factor > 1:
        moved = arrays["stored_segments"].copy()
        moved[0] = 2
        np.savez(path, **{**arrays, "stored_segments": moved})
        refuse(path, problem, "class 0 of segment 1 has")


@pytest.mark.parametrize("kind", ["single", "multi", "bound", None])
@pytest.mark.parametrize("with_segments", [False, True])
def test_nobody_claims_fewer_stored_images(tmp_path, problem, kind, with_segments):
    path = make_file(tmp_path / "x.npz", problem, 2, 20, kind or "single")
    arrays = fields_of(path)
    if kind is None:
        del arrays["formation"]
    if not with_segments:
        del arrays["segments"], arrays["stored_segments"]
    np.savez(path, **arrays)
    seen = len(load(path, problem).decoded.labels) // 2
    stored = {
        name: arrays[name][::10]
        for name in ("stored_pixels", "stored_labels", "stored_segments")
        if name in arrays
    }
    for factor in (1, 2):
        changes = {**stored, "factor": np.int32(factor)}
        np.savez(path, **{**arrays, **changes})
        refuse(path, problem, f"class 0.* has {seen} decoded and 2 stored images")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formation": np.str_("double")}, "formation is 'double'; .* single, multi"),
        ({"formation": np.int32(1)}, r"formation is int32\[\]"),
        ({"segments": np.ones(3, np.int32)}, r"segments is int32\[3\].*\[24\]"),
        ({"stored_segments": np.ones(6)}, r"stored_segments is float64\[6\].*\[6\]"),
        ({"stored_segments": None}, "only one of the fields segments and"),
    ],
)
def test_how_a_file_was_decoded(tmp_path, problem, whole, changes, message):
    arrays = {k: v for k, v in {**whole, **changes}.items() if v is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    refuse(tmp_path / "bad.npz", problem, message)


def test_nothing_is_unpickled(tmp_path, problem):
    called = tmp_path / "called"

    class Trap:
        def __reduce__(self):
            return called.write_text, ("gotcha",)

    with zipfile.ZipFile(tmp_path / "trap.npz", "w") as archive:
        archive.writestr("images.npy", pickle.dumps(Trap()))
        archive.writestr("labels.npy", pickle.dumps(Trap()))
    refuse(tmp_path / "trap.npz", problem, "cannot be read")
    np.savez(tmp_path / "trap.npz", images=np.array([Trap()] * 2), labels=np.zeros(2))
    refuse(tmp_path / "trap.npz", problem, "never unpickled")
    assert not called.exists()


def header(shape, dtype="<f4"):
    file = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def test_a_header_that_promises_too_much_is_not_believed(tmp_path, problem):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("images.npy", header((10**9, 8, 8, 1)) + bytes(64))
        archive.writestr("labels.npy", header((10**9,), "<i4"))
    refuse(tmp_path / "bad.npz", problem, "should have 256000000000 bytes and has 64")


def test_a_negative_size(tmp_path, problem):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("images.npy", header((-1, 8, 8, -1)) + bytes(256))
        archive.writestr("labels.npy", header((1,), "<i4") + bytes(4))
    refuse(tmp_path / "bad.npz", problem, r"\[-1, 8, 8, -1\], with a negative size")


@pytest.mark.parametrize("text", ["{'descr", "{'descr'\n  x\n y", "{(", "1 +", "\\"])
def test_a_header_that_is_no_literal(tmp_path, problem, text):
    start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("images.npy", start + text.encode())
        archive.writestr("labels.npy", header((1,), "<i4") + bytes(4))
    refuse(tmp_path / "bad.npz", problem, "cannot be read")


def test_corrupt_bytes_behind_compression(tmp_path, problem, whole):
    np.savez_compressed(tmp_path / "whole.npz", **whole)
    content = (tmp_path / "whole.npz").read_bytes()
    # NumPy leaves 20 bytes for sizes of large files, of no consequence here.
    begin = content.index(b"images.npy") + len("images.npy") + 20
    for place in range(begin, begin + 60):
        bad = bytearray(content)
        bad[place] ^= 0xFF
        (tmp_path / "bad.npz").write_bytes(bad)
        refuse(tmp_path / "bad.npz", problem, "cannot be read|never unpickled")


def test_a_bomb_is_not_unpacked(tmp_path, problem, monkeypatch):
    labels = np.zeros(2**16, np.int32)
    images = np.zeros((2**16, 8, 8, 1), np.float32)
    np.savez_compressed(tmp_path / "bomb.npz", images=images, labels=labels)
    assert load(tmp_path / "bomb.npz", problem).stored_counts == (2**16, 0)  # small
    monkeypatch.setattr(npz, "ALWAYS_ALLOWED", 2**23)
    monkeypatch.setattr(npz.NpzReader, "array", None)  # calling it would fail
    refuse(tmp_path / "bomb.npz", problem, "decompression bomb")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_a_truncated_file(tmp_path, problem, keep):
    path = make_file(tmp_path / "bad.npz", problem)
    content = path.read_bytes()
    count = keep if isinstance(keep, int) else int(keep * len(content))
    path.write_bytes(content[:count])
    refuse(path, problem, r"no \.npz file|cannot be read")


def test_a_flipped_bit(tmp_path, problem):
    path = make_file(tmp_path / "bad.npz", problem)
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    refuse(path, problem, "cannot be read")


def test_whitened_sets_need_whitened_networks(tmp_path):
    white = small_problem(data__zca=True)
    path = make_file(tmp_path / "white.npz", white)
    assert load(path, white).stored_counts == (3, 3)
    refuse(path, small_problem(), r"config\.data\.zca=True")
    plain = make_file(tmp_path / "plain.npz", small_problem())
    refuse(plain, white, r"config\.data\.zca=False")


def test_an_empty_folder_is_no_set(tmp_path, problem):
    (tmp_path / "run" / "images").mkdir(parents=True)
    refuse(tmp_path / "run", problem, "class folder")


def test_field_names_are_those_of_the_config():
    from dasm_jax.settings import check_key

    check_key(synthetic_files.FIELD)
