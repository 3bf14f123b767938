"""Checkpoints that cannot be read, are damaged, or were made by hand."""

import errno
import json
import os
import resource
import shutil
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasm_jax import checkpoint, stored_tree
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import UserError
from dasm_jax.experiments import keeper
from dasm_jax.numbered import Checkpoints
from dasm_jax.plan import plan_segments
from dasm_jax.run_log import LogPosition
from tests.generated import cases, result_or_one_line
from tests.small import small_problem

LIKE = [np.zeros(3, np.float32), np.zeros((), np.int64)]


def written(folder, count=2):
    items = Checkpoints(folder, count)
    for value in range(count):
        items.save([np.full(3, value, np.float32), np.int64(value)], {"value": value})
    items.wait()
    items.close()
    return folder


def newest(folder, careful=False):
    items = Checkpoints(folder, 2, careful)
    try:
        found = items.newest(lambda metadata: LIKE)
    finally:
        items.close()
    return found[0].metadata["value"] if found else None


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- not now --------------------------------------------------------------------------


def stale(patch, folder):
    whole = checkpoint.read_regular

    def read(path, most):
        if path.parent.name == "000002":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return whole(path, most)

    patch.setattr(checkpoint, "read_regular", read)
    return "Stale file handle"


def broken_disk(patch, folder):
    def digest(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch.setattr(stored_tree.hashlib, "file_digest", digest)
    return "Input/output error"


def other_orbax(patch, folder):
    def refuse(*arguments, **options):
        raise RuntimeError("format 3 is not supported\nmore")

    path = folder / "000002" / "metadata.json"
    record = json.loads(path.read_text())
    assert record["orbax"] == stored_tree.VERSION
    path.write_text(json.dumps(record | {"orbax": "9.8.7"}))
    patch.setattr(stored_tree.ocp.Checkpointer, "restore", refuse)
    return f"with Orbax {stored_tree.VERSION}, where Orbax 9.8.7 wrote it: format 3 is"


@pytest.mark.parametrize("trouble", [stale, broken_disk, other_orbax])
def test_what_cannot_be_read_now_is_not_removed(tmp_path, monkeypatch, trouble):
    written(tmp_path)
    with monkeypatch.context() as patch:
        said = trouble(patch, tmp_path)
        before = content(tmp_path)
        with pytest.raises(UserError, match=said) as caught:
            newest(tmp_path)
    assert "\n" not in str(caught.value)
    assert "000002 cannot be read" in str(caught.value)
    assert content(tmp_path) == before
    assert newest(tmp_path) == 1


def test_too_few_file_handles_remove_nothing(tmp_path):
    written(tmp_path)
    newest(tmp_path)  # whatever is opened once
    before, limits = content(tmp_path), resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, limits[1]))
    taken = []
    try:
        with suppress(OSError):  # also those below the highest one
            while True:
                taken.append(os.dup(0))
        with pytest.raises(UserError, match="Too many open files"):
            newest(tmp_path)
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert content(tmp_path) == before


# --- damaged --------------------------------------------------------------------------


def test_the_damaged_are_set_aside_until_a_newer_one_is_whole(tmp_path):
    written(tmp_path)
    (tmp_path / "000002" / "metadata.json").write_text("{")
    assert newest(tmp_path) == 0
    assert names(tmp_path) == ["000001", "000002.damaged"]
    (tmp_path / "000001" / "metadata.json").write_text("{")
    assert newest(tmp_path) is None
    assert names(tmp_path) == ["000001.damaged", "000002.damaged"]
    items = Checkpoints(tmp_path, 2)
    items.save(LIKE, {"value": 7})
    items.close()
    assert names(tmp_path) == ["000003"]


def test_the_careful_remove_nothing(tmp_path):
    written(tmp_path)
    for name in ("000001", "000002"):
        (tmp_path / name / "metadata.json").write_text("{")
    before = content(tmp_path)
    assert newest(tmp_path, careful=True) is None
    assert content(tmp_path) == before


def test_what_was_left_in_a_folder_goes_with_the_old_item(tmp_path):
    left = tmp_path / "item" / "tree.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "big").touch()
    checkpoint.save(tmp_path, "item", LIKE, {})
    assert names(tmp_path / "item") == ["metadata.json", "tree"]


# --- links ----------------------------------------------------------------------------


def test_a_link_or_another_name_is_no_item(tmp_path):
    folder, outside = written(tmp_path / "items"), tmp_path / "outside"
    outside.mkdir()
    (outside / "metadata.json").write_text("precious")
    (folder / "000009").symlink_to(outside)
    for name in ("٠٠٠٠٠٧", "7", "0000007"):
        (folder / name).mkdir()
    assert newest(folder) == 1
    written(folder)
    assert (outside / "metadata.json").read_text() == "precious"
    assert {"٠٠٠٠٠٧", "7", "0000007", "000009"} <= {*names(folder)}


def test_of_a_linked_folder_the_items_are_removed(tmp_path):
    elsewhere = written(tmp_path / "elsewhere")
    (elsewhere / "evaluation_000" / "tree.orbax-checkpoint-tmp").mkdir(parents=True)
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "file").touch()
    (tmp_path / "checkpoints").symlink_to(elsewhere)
    keeper.discard(tmp_path)
    assert names(elsewhere) == ["mine"]


# --- made by hand ---------------------------------------------------------------------


def with_digests(item):
    path = item / "metadata.json"
    record = json.loads(path.read_text())
    record["files"] = stored_tree._digests(
        item / "tree",
        [
            p.relative_to(item / "tree").as_posix()
            for p in (item / "tree").rglob("*")
            if p.is_file()
        ],
    )
    path.write_text(json.dumps(record))


def stated(item, **changes):
    path = item / "tree" / "_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_files(item):
    path = item / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}}))


def zarr_with_a_pipe(item):
    tree = item / "tree"
    stated(item, use_ocdbt=False)
    (tree / "0").mkdir()
    about = {
        "zarr_format": 2,
        "shape": [3],
        "chunks": [3],
        "dtype": "<f4",
        "compressor": None,
        "fill_value": None,
        "order": "C",
        "filters": None,
    }
    (tree / "0" / ".zarray").write_text(json.dumps(about))
    with_digests(item)
    os.mkfifo(tree / "0" / "0")


def a_link(item):
    (item / "tree" / "more").symlink_to("/etc/hostname")
    with_digests(item)


def no_ocdbt(item):
    stated(item, use_ocdbt=False)
    with_digests(item)


def zarr_3(item):
    stated(item, use_zarr3=True)
    with_digests(item)


def a_large_file(item):
    with (item / "tree" / "large").open("wb") as file:
        file.truncate(2**40)
    no_files(item)
    path = item / "metadata.json"
    record = json.loads(path.read_text())
    record["files"] = {
        p.relative_to(item / "tree").as_posix(): "0"
        for p in (item / "tree").rglob("*")
        if p.is_file()
    }
    path.write_text(json.dumps(record))


def metadata_is_a_pipe(item):
    (item / "metadata.json").unlink()
    os.mkfifo(item / "metadata.json")


@pytest.mark.parametrize(
    "make",
    [
        no_files,
        zarr_with_a_pipe,
        a_link,
        no_ocdbt,
        zarr_3,
        a_large_file,
        metadata_is_a_pipe,
    ],
)
def test_what_this_program_never_writes_is_not_opened(tmp_path, monkeypatch, make):
    checkpoint.save(tmp_path, "item", LIKE, {})
    make(tmp_path / "item")

    def read(*arguments, **options):
        pytest.fail("Orbax was asked")

    monkeypatch.setattr(stored_tree.ocp.Checkpointer, "restore", read)
    monkeypatch.setattr(stored_tree.ocp.Checkpointer, "metadata", read)
    with pytest.raises(UserError) as caught:
        checkpoint.load(tmp_path, "item", LIKE)
    assert "\n" not in str(caught.value)


class Kept:
    """A small run's checkpoint, written once and changed again and again."""

    def __init__(self, folder):
        self.problem = small_problem(network__depth=1, matcher__name="dm")
        self.plans = plan_segments(self.problem)
        stops = []
        run_dasm(
            self.problem,
            self.plans,
            on_outer=lambda progress: stops.append(progress.snapshot()),
        )
        with keeper.Keeper(self.problem, self.plans, folder / "whole") as kept:
            kept._keep(stops[-1], LogPosition(3, 1.0, 9))
        self.whole, self.again = folder / "whole", folder / "again"
        self.name = names(self.whole / "checkpoints")[0]

    def found(self, change):
        """Where a run goes on once ``change(item)`` has been at work, or None."""
        shutil.rmtree(self.again, ignore_errors=True)
        shutil.copytree(self.whole, self.again)
        change(self.again / "checkpoints" / self.name)

        def look():
            with keeper.Keeper(self.problem, self.plans, self.again) as found:
                return found.where

        return result_or_one_line(look)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("kept"))


def in_metadata(change):
    def act(item):
        path = item / "metadata.json"
        record = json.loads(path.read_text())
        change(record["metadata"])
        path.write_text(json.dumps(record))

    return act


def test_the_checkpoint_that_is_changed_is_good(kept):
    assert kept.found(lambda item: None) == "segment 2, outer iteration 1"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("identity"),
        lambda m: m.update(identity=[]),
        lambda m: m.pop("layout"),
        lambda m: m["layout"].update(arrays=[["nonsense", [1]]]),
        lambda m: m["layout"]["arrays"].pop(),
        lambda m: m["layout"]["arrays"][1].__setitem__(1, [2**45]),
        lambda m: m["layout"].update(scored=[True, True]),
        lambda m: m["layout"]["active"].update(state=10**9),
        lambda m: m["layout"].update(scored=5),
        lambda m: m.update(log={"x": 1}),
        lambda m: m.update(log=dict.fromkeys(LogPosition._fields, "x")),
        lambda m: m.update(machine=3),
        lambda m: m.update(instead_of=3),
    ],
)
def test_metadata_made_by_hand_give_way(kept, caplog, change):
    assert kept.found(in_metadata(change)) == "the beginning"
    assert "is damaged, and there is no whole one before it" in caplog.text


def test_a_checkpoint_of_another_format_is_refused(kept):
    before = None

    def old(item):
        nonlocal before
        in_metadata(lambda m: [m["identity"].pop("format"), m.pop("machine")])(item)
        before = content(item)

    assert kept.found(old) is None
    assert content(kept.again / "checkpoints" / kept.name) == before


def places(value, path=()):
    """Where in a JSON value something can be exchanged."""
    yield path
    inside = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inside = enumerate(value)
    for key, below in inside:
        yield from places(below, (*path, key))


def exchanged(value, path, by):
    if not path:
        return by
    copied = value.copy()
    copied[path[0]] = exchanged(value[path[0]], path[1:], by)
    return copied


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([2**45, 10**30, -(2**63), 1e300, float("nan"), float("inf")])
    | st.sampled_from(["", "<f4", "|O", "<f8", "|b1", "(9,)<f4", "../..", "a\nb"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["arrays", "0", "scored"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def changed(item, name, data):
    path = item / name
    value = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from([*places(value)]))
        value = exchanged(value, at, data.draw(JSON))
        if not isinstance(value, dict | list):
            break
    deep = data.draw(st.sampled_from([0] * 9 + [100_000]))
    path.write_text("[" * deep + json.dumps(value))


@given(st.data())
@cases(600)
def test_generated_metadata(kept, data):
    kept.found(lambda item: changed(item, "metadata.json", data))


@pytest.mark.filterwarnings("ignore:coroutine '.*Handler:RuntimeWarning")
@given(st.data())
@cases(300)
def test_generated_metadata_of_orbax(kept, data):
    def change(item):
        changed(item, "tree/_METADATA", data)
        with_digests(item)

    kept.found(change)
