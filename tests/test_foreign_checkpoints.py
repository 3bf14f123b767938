"""Checkpoints made by hand, or of another run: each is refused, or gives way."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasm_jax import checkpoint, stored_tree
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import UserError
from dasm_jax.experiments import keeper
from dasm_jax.plan import plan_segments
from dasm_jax.run_log import LogPosition
from tests.checkpoint_cases import LIKE, content, names, record_of, write_record
from tests.generated import cases, result_or_one_line
from tests.small import small_problem


def with_digests(item):
    files = stored_tree._digests(
        item / "tree",
        [
            p.relative_to(item / "tree").as_posix()
            for p in (item / "tree").rglob("*")
            if p.is_file()
        ],
    )
    write_record(item, record_of(item) | {"files": files})


def stated(item, **changes):
    path = item / "tree" / "_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_files(item):
    write_record(item, record_of(item) | {"files": {}})


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
    files = {
        p.relative_to(item / "tree").as_posix(): "0"
        for p in (item / "tree").rglob("*")
        if p.is_file()
    }
    write_record(item, record_of(item) | {"files": files})


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
        self.stop = stops[-1]
        self.whole, self.again = folder / "whole", folder / "again"
        self.written(self.stop, self.whole)
        self.name = names(self.whole / "checkpoints")[0]

    def written(self, snapshot, folder):
        """Where a run goes on that has kept ``snapshot``."""
        with keeper.Keeper(self.problem, self.plans, folder) as kept:
            kept._keep(snapshot, LogPosition(3, 1.0, 9))
        return self.where(folder)

    def where(self, folder):
        with keeper.Keeper(self.problem, self.plans, folder) as found:
            return found.where

    def look_at(self, change):
        """Where a run goes on once ``change(item)`` has been at work."""
        shutil.rmtree(self.again, ignore_errors=True)
        shutil.copytree(self.whole, self.again)
        change(self.again / "checkpoints" / self.name)
        return self.where(self.again)

    def found(self, change):
        """The same, or None where it is refused in one line."""
        return result_or_one_line(lambda: self.look_at(change))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("kept"))


def in_metadata(change):
    def act(item):
        record = record_of(item)
        change(record["metadata"])
        write_record(item, record)

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


def test_a_checkpoint_of_an_older_version_is_refused(kept):
    def old(item):
        record = record_of(item)
        del record[checkpoint.SEAL]
        (item / "metadata.json").write_text(json.dumps(record))

    with pytest.raises(UserError, match="written by an older version; nothing is rem"):
        kept.look_at(old)
    assert names(kept.again / "checkpoints") == [kept.name]


def flipped(text, word, other):
    assert len(word) == len(other)
    assert text.count(word) == 1
    return text.replace(word, other)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ('"metrics_bytes": 9', '"metrics_bytes": 8'),
        ('"done": 3', '"done": 2'),
        ('"version"', '"versioo"'),
        ('"machine"', '"machinf"'),
        (f'"{checkpoint.SEAL}"', '"sha257"'),
    ],
)
def test_a_flipped_bit_in_metadata_is_not_believed(kept, caplog, word, other):
    def flip(item):
        path = item / "metadata.json"
        path.write_text(flipped(path.read_text(), word, other))

    assert kept.found(flip) == "the beginning"
    assert "is damaged, and there is no whole one before it" in caplog.text


def cast(leaf):
    return leaf.astype(np.float64 if leaf.dtype == np.float32 else np.int64)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [*state, np.zeros(3)],
        lambda state: state[:-1],
        lambda state: [state[0][:, :, :1], *state[1:]],
        lambda state: [cast(state[0]), *state[1:]],
        lambda state: [*state[:-1], state[-1].reshape(1)],
    ],
)
def test_a_state_of_another_run_gives_way(kept, caplog, tmp_path, change):
    active = kept.stop.active
    state = change(active.state)
    stop = kept.stop._replace(active=active._replace(state=state))
    assert kept.written(stop, tmp_path) == "the beginning"
    assert "is damaged" in caplog.text


def with_seconds(stop, value):
    seconds = stop.active.seconds._replace(matching=value)
    return stop._replace(active=stop.active._replace(seconds=seconds))


@pytest.mark.parametrize(
    "change",
    [
        lambda stop: stop._replace(halvings=2**40),
        lambda stop: stop._replace(halvings=-1),
        lambda stop: stop._replace(
            finished=[
                each._replace(plan=each.plan.slowed(5000)) for each in stop.finished
            ]
        ),
        lambda stop: with_seconds(stop, float("nan")),
        lambda stop: with_seconds(stop, -1.0),
    ],
    ids=["halvings", "negative", "of a segment", "nan", "seconds"],
)
def test_numbers_that_no_run_has_give_way(kept, caplog, tmp_path, change):
    assert kept.written(change(kept.stop), tmp_path) == "the beginning"
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("field", ["pixels", "seen"])
def test_finished_segments_of_another_shape_give_way(kept, caplog, tmp_path, field):
    (first,) = kept.stop.finished
    leaves, structure = jax.tree.flatten(getattr(first, field))
    other = structure.unflatten([*leaves[:-1], leaves[-1][..., None]])
    finished = [first._replace(**{field: other})]
    assert kept.written(kept.stop._replace(finished=finished), tmp_path) == (
        "the beginning"
    )
    assert "is damaged" in caplog.text


def changed(item, name, data):
    path = item / name
    value = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from([*places(value)]))
        value = exchanged(value, at, data.draw(JSON))
        if not isinstance(value, dict | list):
            break
    # One in two is sealed, and so looked into.
    if name == "metadata.json" and isinstance(value, dict) and data.draw(st.booleans()):
        value = checkpoint.sealed(value)
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
