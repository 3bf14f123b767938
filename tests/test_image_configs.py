"""configs/imagenet10.py and configs/tiny_imagenet.py, on folders made here."""

import importlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from dasm_jax import run
from dasm_jax.data import load_dataset
from dasm_jax.data.images import fit
from dasm_jax.settings import from_config
from tests.data_cases import Tiny, fails

SMALL = {
    "ipc": 1,
    "network.width": 4,
    "dasm.segments": 1,
    "dasm.networks": 1,
    "dasm.score_steps": 2,
    "matcher.idc.real_batch": 2,
    "matcher.idc.loop.niter": 1,
    "matcher.idc.loop.inner": 1,
    "matcher.idc.trajectory.n_data": 2,
    "matcher.idc.trajectory.recipe.batch": 2,
    "evaluate.networks": 1,
    "evaluate.steps": 2,
    "evaluate.prefixes": False,
    "evaluate.baselines": False,
    "evaluate.recipe.batch": 2,
    "measure.networks": 0,
}


def photos(root, n_classes=2, train=3, test=2):
    """Photos of all shapes: a colour per class, noise on it."""
    numbers = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label in range(n_classes):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                shape = (*numbers.integers(20, 60, 2), 3)
                pixels = numbers.integers(0, 100, shape, np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def start(name, workdir, **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(
        SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    )
    text = run.run(from_config(config), str(workdir))
    table = json.loads((workdir / "summary.json").read_text())["table"]
    assert table
    assert all(0 <= row["mean"] <= 1 for row in table)
    assert "synthetic.npz" in text
    with np.load(workdir / "synthetic.npz") as archive:
        images = archive["images"]
        # Every stored image holds f×f.
        assert len(images) == config.ipc * 2 * from_config(config).factor ** 2
    assert np.isfinite(images).all()
    return images


# --- the two configs ------------------------------------------------------------------


@pytest.mark.slow
def test_imagenet10(tmp_path):
    """With a network that compiles in seconds; its own one below."""
    root = photos(tmp_path / "photos")
    changes = {"network__name": "convnet", "network__depth": 1, "data__size": 30}
    images = start("imagenet10", tmp_path / "run", data__name=str(root), **changes)
    assert images.shape[-3:] == (30, 30, 3)


@pytest.mark.slow
def test_imagenet10_with_its_network(tmp_path):
    root = photos(tmp_path / "photos")
    changes = {"data__size": 48, "ipc": 2, "dasm__segments": 2}
    changes["evaluate__baselines"] = True
    images = start("imagenet10", tmp_path / "run", data__name=str(root), **changes)
    assert images.shape[-3:] == (48, 48, 3)


@pytest.mark.slow
def test_tiny_imagenet(tmp_path):
    root = photos(tmp_path / "photos")
    images = start(
        "tiny_imagenet", tmp_path / "run", data__name=str(root), data__size=16
    )
    assert images.shape[-3:] == (16, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("imagenet10", 224), ("tiny_imagenet", 64)])
def test_in_full_size(tmp_path, name, side):
    root = photos(tmp_path / "photos")
    images = start(name, tmp_path / "run", data__name=str(root))
    assert images.shape[-3:] == (side, side, 3)


@pytest.mark.slow
def test_from_tfds(tmp_path):
    tiny = Tiny(tmp_path / "tfds", sizes=(4, 5, 9, 4, 6, 4)).write()
    images = start(
        "tiny_imagenet",
        tmp_path / "run",
        data__source="tfds",
        data__name="tiny",
        data__data_dir=str(tiny.root),
        data__size=16,
        network__depth=1,
    )
    assert images.shape[-3:] == (16, 16, 3)


def test_published_values():
    config = importlib.import_module("configs.imagenet10").get_config()
    s = from_config(config)
    assert (s.data.size, s.network.name, s.network.width) == (224, "resnet_ap10", 64)
    assert (s.network.norm, s.factor) == ("instance", 3)
    idc = s.matcher.idc
    assert (idc.metric, idc.image.lr, idc.image.base_size) == ("l1", 3e-3, 224)
    assert (idc.loop.niter, idc.trajectory.n_data) == (500, 500)
    s = from_config(importlib.import_module("configs.tiny_imagenet").get_config())
    assert (s.data.size, s.network.depth, s.network.width) == (64, 4, 128)


# --- images of any shape --------------------------------------------------------------


def test_fit_cuts_the_centre_of_what_covers():
    columns = np.repeat(np.arange(12, dtype=np.uint8)[None], 4, 0) * 20
    wide = np.asarray(fit(Image.fromarray(columns), 4, 4))
    np.testing.assert_array_equal(wide, columns[:, 4:8])  # nothing to resize
    tall = np.asarray(fit(Image.fromarray(columns.T.copy()), 4, 4))
    np.testing.assert_array_equal(tall, columns[:, 4:8].T)
    # Halved: the shorter side becomes 2 px, the longer 6 px, of which 2 stay. Bilinear
    # with antialiasing weighs 1, 3, 3, 1 eighths of the pixels below.
    half = np.asarray(fit(Image.fromarray(columns), 2, 2))
    np.testing.assert_allclose(half, [[90, 130]] * 2, atol=1)
    image = Image.fromarray(columns)
    assert fit(image, 4, 12) is image
    enlarged = fit(Image.fromarray(columns[:, :3]), 7, 7)
    assert enlarged.size == (7, 7)


@pytest.mark.parametrize("shape", [(1, 300), (299, 3), (5, 5), (223, 224), (225, 224)])
def test_fit_always_fits(shape):
    image = Image.fromarray(np.full((*shape, 3), 77, np.uint8))
    pixels = np.asarray(fit(image, 7, 7))
    np.testing.assert_array_equal(pixels, np.full((7, 7, 3), 77))


def test_folder_of_different_shapes(tmp_path):
    root = photos(tmp_path / "photos")
    fails("resize all images to one size, or set config.data.size", "folder", root)
    data = load_dataset("folder", str(root), size=10)
    assert data.train.images.shape == (6, 10, 10, 3)
    path = root / "train" / "n00000001" / "2.png"
    expected = np.asarray(fit(Image.open(path), 10, 10))
    np.testing.assert_array_equal(data.train.images[5], expected)
    # Sizes have caches of their own; blocks are averaged afterwards.
    assert load_dataset("folder", str(root), size=12).image_shape == (12, 12, 3)
    again = load_dataset("folder", str(root), size=10)
    assert again.content_hash == data.content_hash
    half = load_dataset("folder", str(root), size=10, downsample=2)
    assert half.image_shape == (5, 5, 3)
    for image in (root / "test").rglob("*.png"):
        Image.open(image).convert("L").save(image)
    assert load_dataset("folder", str(root), size=9).image_shape == (9, 9, 3)
    for image in (root / "train").rglob("*.png"):
        Image.open(image).convert("L").save(image)
    assert load_dataset("folder", str(root), size=9).image_shape == (9, 9, 1)


def test_tfds_of_different_shapes(tmp_path):
    tiny = Tiny(tmp_path, sizes=(4, 5, 9, 4, 6, 4)).write()
    tiny.fails("images have one size, or set config.data.size")
    data = tiny.load(size=4)
    assert data.train.images.shape == (6, 4, 4, 3)
    levels = data.train.images[:, 0, 0, 0]  # every image has one colour
    np.testing.assert_array_equal(levels, [0, 10, 20, 30, 40, 50])
    assert tiny.load(size=6).image_shape == (6, 6, 3)
    assert tiny.load(size=4).content_hash == data.content_hash


def test_digits_have_their_size():
    fails("config.data.size is 16, .* 8x8", "digits", "digits", size=16)


def test_labels_follow_the_folders(tmp_path):
    data = load_dataset("folder", str(photos(tmp_path / "photos")), size=8)
    mean = jax.device_get(data.train.images).mean((1, 2))
    np.testing.assert_array_equal(mean[:, :2].argmax(-1), data.train.labels)
