"""Loading from a folder of images per class."""

import hashlib
import zlib

import numpy as np
import pytest
from PIL import Image

from dasm_jax.data import load_dataset
from tests.data_cases import (
    assert_equal,
    fails,
)


def write_images(folder, n, *, mode="L", size=(4, 6), suffix=".png", start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + n):
        image = Image.new("L", size, 10 * index).convert(mode)
        image.save(folder / f"{index:02d}{suffix}")


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    write_images(root / "cat", 10)
    write_images(root / "dog", 5)
    return root


def test_folder_is_split_by_class(photos):
    (photos / ".hidden").mkdir()
    (photos / "readme.txt").write_text("not a class")
    (photos / "cat" / "notes.txt").write_text("not an image")
    (photos / "cat" / ".00.png").write_bytes(b"not an image")
    (photos / "cat" / "more.png").mkdir()
    data = load_dataset("folder", str(photos), test_share=0.3)
    assert data.name == "photos"
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (6, 4, 1)
    np.testing.assert_array_equal(np.bincount(data.train.labels), [7, 3])
    np.testing.assert_array_equal(np.bincount(data.test.labels), [3, 2])

    # The rule, written out once more: the smallest hashes of the path are for testing.
    paths = [f"cat/{index:02d}.png" for index in range(10)]
    by_hash = sorted(paths, key=lambda p: hashlib.sha256(p.encode()).digest())
    expected = [10 * int(path[4:6]) for path in sorted(by_hash[:3])]
    np.testing.assert_array_equal(data.test.images[:3, 0, 0, 0], expected)
    expected = [10 * int(path[4:6]) for path in sorted(by_hash[3:])]
    np.testing.assert_array_equal(data.train.images[:7, 0, 0, 0], expected)


def test_folder_split_depends_on_names_only(photos, tmp_path):
    data = load_dataset("folder", str(photos))
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    photos.rename(moved)
    assert_equal(load_dataset("folder", str(moved)), data)
    assert len(load_dataset("folder", str(moved), test_share=0.01).test.labels) == 2


def test_folder_with_its_own_split(tmp_path):
    root = tmp_path / "photos"
    for part, n in (("train", 3), ("test", 2)):
        write_images(root / part / "cat", n, suffix=".JPG")
        write_images(root / part / "dog", n, suffix=".bmp", start=5)
    data = load_dataset("folder", str(root))
    np.testing.assert_array_equal(data.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.test.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.train.images[3:, 0, 0, 0], [50, 60, 70])

    write_images(root / "test" / "elk", 1)
    fails("class folder elk is in only one of", "folder", root)
    (root / "test").rename(root / "val")
    fails("has a folder train but no folder test", "folder", root)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "CMYK"])
def test_folder_is_gray_only_when_every_image_is(photos, mode):
    write_images(photos / "cat", 1, mode="1")
    assert load_dataset("folder", str(photos)).image_shape == (6, 4, 1)
    suffix = ".jpg" if mode == "CMYK" else ".png"
    write_images(photos / "cat", 1, mode=mode, start=20, suffix=suffix)
    data = load_dataset("folder", str(photos))
    assert data.image_shape == (6, 4, 3)
    gray = data.train.images[data.train.labels == 1]
    np.testing.assert_array_equal(gray[..., 0], gray[..., 2])


def test_folder_palette_with_transparency(photos):
    image = Image.new("P", (4, 6), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    for split in ("cat", "dog"):
        image.save(photos / split / "x.png", transparency=bytes([0, 128]))
    data = load_dataset("folder", str(photos), test_share=0.2)
    colors = np.concatenate([data.train.images, data.test.images])[:, 0, 0]
    assert (colors == [200, 100, 50]).all(-1).sum() == 2


def test_folder_cache_follows_files(photos, cache_dir, monkeypatch):
    data = load_dataset("folder", str(photos))
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", None)  # a hit decodes nothing
        assert_equal(load_dataset("folder", str(photos)), data)
    write_images(photos / "cat", 1, start=20)
    assert len(load_dataset("folder", str(photos)).train.labels) == 13
    (photos / "cat" / "20.png").unlink()
    assert_equal(load_dataset("folder", str(photos)), data)
    (photos / "dog" / "00.png").touch()
    assert_equal(load_dataset("folder", str(photos)), data)

    gone = photos.rename(photos.with_name("gone"))
    assert_equal(load_dataset("folder", str(photos)), data)
    assert len(load_dataset("folder", str(gone)).train.labels) == 12
    fails("there is no folder", "folder", photos, test_share=0.5)


def test_folder_layout_errors(photos, tmp_path):
    fails(f"there is no folder {tmp_path / 'nowhere'};", "folder", tmp_path / "nowhere")
    fails("00.png is a file", "folder", photos / "cat" / "00.png")
    fails("has 0 class folder", "folder", photos / "cat")
    fails("data.test_share is 0", "folder", photos, test_share=0.0)
    fails("data.test_share is 1.0", "folder", photos, test_share=1.0)
    fails("leaves none to train on", "folder", photos, test_share=0.99)
    (photos / "elk").mkdir()
    fails(f"class folder {photos / 'elk'} holds no image", "folder", photos)
    write_images(photos / "elk", 1)
    fails(f"{photos / 'elk'} has 1 image", "folder", photos)
    write_images(tmp_path / "single" / "cat", 3)
    fails("has 1 class folder", "folder", tmp_path / "single")


def test_folder_different_sizes(photos):
    write_images(photos / "dog", 1, size=(5, 6), start=7)
    fails("cat/.*png is 4x6 pixels but .*/dog/07.png is 5x6; resize", "folder", photos)


def test_folder_sixteen_bits(photos):
    Image.fromarray(np.full((6, 4), 1000, np.uint16)).save(photos / "cat" / "x.png")
    fails("cat/x.png has more than 8 bits", "folder", photos)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp"])
def test_folder_damaged_images(photos, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (6, 4), np.uint8)
    path = photos / "dog" / f"x{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"no image", whole[: len(whole) * 3 // 4], whole[:20]):
        path.write_bytes(damaged)
        fails(f"dog/x{suffix} cannot be decoded.*replace or remove", "folder", photos)


def test_folder_broken_png_chunk(photos):
    # The second of two data chunks has no name: only decoding meets it.
    path = photos / "dog" / "00.png"
    whole = path.read_bytes()
    end = whole.index(b"IDAT") + 4 + 2  # two bytes of data are enough for the first
    data = whole[end - 6 : end]
    first = (2).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
    path.write_bytes(whole[: end - 10] + first + bytes(50))
    fails("dog/00.png cannot be decoded .SyntaxError", "folder", photos)


def test_folder_decompression_bombs(photos, monkeypatch):
    # Pillow warns above the limit and raises above twice the limit.
    for limit in (20, 5):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        fails(f"cat/.*png claims more than {limit} pixels", "folder", photos)
