"""Generated archives: what is written is read, what is damaged is refused. 6,000."""

import io
import random
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dasm_jax.errors import UserError
from dasm_jax.npz import DAMAGE, open_npz
from dasm_jax.synthetic_files import load_set
from tests import fuzz_npz
from tests.generated import cases, result_or_one_line

DTYPES = st.one_of(
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(sizes=(16, 32, 64)),
    hnp.boolean_dtypes(),
    hnp.unicode_string_dtypes(max_len=5),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=5, max_side=4))
DATASET = fuzz_npz.small_dataset()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One file for all cases: writing it anew is enough."""
    return tmp_path_factory.mktemp("generated") / "set.npz"


@cases(1000)
@given(
    arrays=st.dictionaries(st.text("abc_", min_size=1, max_size=4), ARRAYS, max_size=3),
    save=st.sampled_from([np.savez, np.savez_compressed]),
    fortran=st.booleans(),
)
def test_what_is_saved_is_read(path, arrays, save, fortran):
    if fortran:
        arrays = {name: np.asfortranarray(array) for name, array in arrays.items()}
    with path.open("wb") as file:
        save(file, **arrays)
    with open_npz(path) as reader:
        assert not reader.has("other")
        for name, array in arrays.items():
            assert reader.has(name)
            assert reader.header(name) == (array.shape, array.dtype)
            found = reader.array(name)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def read_or_refuse(path):
    """What an archive gives, or None; anything but what is documented is raised."""
    try:
        with open_npz(path) as reader:
            return [reader.array(name) for name in ("images", "labels", "factor")]
    except DAMAGE:
        return None


SHAPES = st.one_of(
    st.lists(st.one_of(st.integers(0, 9), st.integers()), max_size=70).map(tuple),
    st.sampled_from([(), (2,), (-1, -2), (0, 10**30), (2**62, 4), (True,), (2, 2)]),
)
HEADERS = st.one_of(
    st.fixed_dictionaries(
        {
            "descr": st.one_of(
                st.sampled_from(fuzz_npz.DESCRIPTIONS),
                st.text(max_size=6),
                st.lists(st.tuples(st.text(max_size=3), st.sampled_from(["<f4", "O"]))),
            ),
            "fortran_order": st.booleans(),
            "shape": SHAPES,
        }
    ).map(repr),
    st.sampled_from(fuzz_npz.LITERALS),
    st.text(max_size=30),
    st.recursive(st.none(), st.lists, max_leaves=20).map(repr),
)


@cases(2000)
@given(text=HEADERS, version=st.sampled_from([1, 2, 3]), data=st.binary(max_size=64))
def test_no_header_is_believed(path, text, version, data):
    encoded = text.encode(errors="replace")
    length = len(encoded).to_bytes(2 if version == 1 else 4, "little")
    npy = b"\x93NUMPY" + bytes([version, 0]) + length + encoded + data
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("images", "labels", "factor"):
            archive.writestr(f"{name}.npy", npy)
    for array in read_or_refuse(path) or ():
        assert array.nbytes == len(data)  # never more than there is
        assert array.dtype.kind in "biufU"


@cases(3000)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 3))
def test_a_mutated_set_is_a_set_or_one_line(path, seed, times):
    rng = random.Random(seed)
    data = rng.choice(SEEDS)
    for _ in range(times):
        data = fuzz_npz.mutated(data, rng)
    path.write_bytes(data)
    found = result_or_one_line(lambda: load_set(path, DATASET, fuzz_npz.STATISTICS))
    if found is None:
        return
    images, labels = found.decoded
    assert images.shape == (len(labels), 4, 4, 1)
    assert ((images > -0.01) & (images < 1.01)).all()
    assert set(labels.tolist()) <= {0, 1}
    assert sum(found.stored_counts) * found.factor**2 >= len(labels)


SEEDS = fuzz_npz.seeds()


def test_the_seeds_are_read_or_refused_as_they_should_be(path):
    accepted = []
    for data in SEEDS:
        path.write_bytes(data)
        try:
            load_set(path, DATASET, fuzz_npz.STATISTICS)
            accepted.append(True)
        except UserError:
            accepted.append(False)
    assert accepted == [True, True, True, False, False, False, False]


def test_the_fuzzer_sees_crashes(tmp_path, monkeypatch):
    harness = fuzz_npz.Harness(tmp_path, 0.0)
    harness.read(SEEDS[0])
    harness.read(b"")
    assert (harness.accepted, len(harness.refused), harness.crashes) == (1, 1, {})

    def fail(*arguments):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(fuzz_npz, "load_set", fail)
    harness.read(b"x")
    assert harness.crashes == {"ZeroDivisionError: oops": b"x"}
    assert "crash: ZeroDivisionError: oops" in harness.report()
    assert "executions 3" in harness.report()


def test_a_seed_gives_the_same_mutations():
    first, again, other = (
        [fuzz_npz.mutated(SEEDS[0], random.Random(seed)) for _ in range(1)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert zipfile.is_zipfile(io.BytesIO(SEEDS[0]))
