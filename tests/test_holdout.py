"""Training images held out: which, in whose place, and under what hash."""

import numpy as np
import pytest

from dasm_jax.data import load_dataset
from dasm_jax.data.holdout import hold_out
from dasm_jax.errors import UserError
from dasm_jax.experiments import common
from dasm_jax.settings import from_config
from tests.small import small_config, small_dataset


def as_set(split):
    return {image.tobytes() for image in split.images}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "digits"), load_dataset(
        "digits", "digits", validation=0.2
    )


def test_validation_is_of_the_training_images(digits):
    whole, divided = digits
    assert as_set(divided.train) | as_set(divided.test) == as_set(whole.train)
    assert not as_set(divided.train) & as_set(divided.test)
    assert not as_set(divided.test) & as_set(whole.test)  # that is not used at all
    counts = np.bincount(whole.train.labels)
    held = np.bincount(divided.test.labels)
    assert held.tolist() == [round(0.2 * n) for n in counts]
    assert len(divided.train.labels) + len(divided.test.labels) == len(
        whole.train.labels
    )


def test_order_and_labels_stay(digits):
    whole, divided = digits
    label_of = {i.tobytes(): n for i, n in zip(whole.train.images, whole.train.labels)}
    for split in divided.train, divided.test:
        assert [label_of[i.tobytes()] for i in split.images] == split.labels.tolist()
    position = {image.tobytes(): n for n, image in enumerate(whole.train.images)}
    places = [position[image.tobytes()] for image in divided.train.images]
    assert places == sorted(places)


def test_the_division_never_moves(digits):
    # A change of it would make every earlier choice one on other images.
    assert (
        digits[1].content_hash
        == load_dataset("digits", "digits", validation=0.2).content_hash
    )
    assert digits[1].content_hash.startswith("c7f5f931d8f1")


def test_another_share_is_another_dataset(digits):
    other = load_dataset("digits", "digits", validation=0.1)
    hashes = {d.content_hash for d in (*digits, other)}
    assert len(hashes) == 3
    # A smaller share is part of the larger one.
    assert as_set(other.test) < as_set(digits[1].test)


def test_every_source_holds_out(tiny, tmp_path):
    from PIL import Image

    for number in range(10):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * number).save(folder / f"{number}.png")
    for place in (("folder", str(tmp_path / "photos")), ("tfds", "tiny")):
        given = {"data_dir": str(tmp_path / "tfds"), "test_share": 0.2}
        whole = load_dataset(*place, **given)
        divided = load_dataset(*place, **given, validation=0.3)
        assert as_set(divided.train) | as_set(divided.test) == as_set(whole.train)
        assert divided.content_hash == hold_out(whole, 0.3).content_hash
    half = load_dataset("digits", "digits", downsample=2, validation=0.2)
    assert half.test.images.shape[1:] == (4, 4, 1)


def test_a_class_is_never_left_empty():
    whole = small_dataset(2)
    for share in (1.0, 0.99):
        with pytest.raises(UserError, match=r"config\.data\.validation=.*lower it"):
            hold_out(whole, share)
    # And never without a validation image.
    assert np.bincount(hold_out(whole, 1e-6).test.labels).tolist() == [1, 1]


def test_statistics_are_of_what_is_left():
    def load(share):
        config = small_config(data__validation=share)
        return common.load_problem(from_config(config))

    whole, divided = load(0.0), load(0.2)
    assert whole.statistics != divided.statistics
    assert len(divided.dataset.test.labels) != len(whole.dataset.test.labels)
    assert sum(map(len, divided.class_indices)) == len(divided.dataset.train.labels)


def test_tables_say_which_split_they_are_of():
    s = from_config(small_config(data__validation=0.2))
    assert s.data.tested_on == "validation"
    assert from_config(small_config()).data.tested_on == "test"
    summary = {
        "dataset": "d",
        "split": "validation",
        "evaluation_networks": 1,
        "evaluation_steps": 2,
        "table": [],
    }
    assert common.render_table(summary)[0].startswith("d: validation accuracy in %")
