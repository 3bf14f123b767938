"""What the tests of loading share: expectations, and a tiny prepared TFDS dataset."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dasm_jax import types
from dasm_jax.data import load_dataset
from dasm_jax.errors import UserError

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "tfds"


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"needs {name} prepared in ../shared/tfds beside the repository")
    return str(REAL)


def fails(match, source, name, **options):
    """Expects one line of UserError and returns it."""
    with pytest.raises(UserError, match=match) as caught:
        load_dataset(source, str(name), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_equal(a: types.Dataset, b: types.Dataset):
    for split_a, split_b in zip((a.train, a.test), (b.train, b.test)):
        for x, y in zip(split_a, split_b):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
    assert a.class_names == b.class_names
    assert a.name == b.name
    assert a.content_hash == b.content_hash


def small(n=6, shape=(2, 2, 1)):
    images = np.arange(n * np.prod(shape)).reshape(n, *shape).astype(np.uint8)
    return types.ArrayDataset(images, np.arange(n, dtype=np.int32) % 2)


def only(folder):
    (path,) = folder.iterdir()
    return path


def meta_of(path):
    with np.load(path, allow_pickle=False) as archive:
        return json.loads(archive["meta"].item())


@dataclasses.dataclass
class Tiny:
    """A prepared TFDS dataset of a few images, and the way to break it."""

    root: Path
    sizes: tuple[int, ...] = (4,) * 6  # heights of the training images
    names: tuple[str, ...] = ("cat", "dog")
    extra: bool = False  # a second image feature
    dtype: type = np.uint8

    @property
    def folder(self):
        return self.root / "tiny" / "1.0.0"

    def shard(self, split):
        return self.folder / f"tiny-{split}.array_record-00000-of-00001"

    def write(self):
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.proto import tf_example_pb2

        self.folder.mkdir(parents=True)
        image = tfds.features.Image(shape=(None, None, 3), dtype=self.dtype)
        features = {"photo": image, "kind": tfds.features.ClassLabel(names=self.names)}
        if self.extra:
            features["mask"] = tfds.features.Image(shape=(None, None, 3))
        described = tfds.features.FeaturesDict(features)
        described.save_config(self.folder)
        described.save_metadata(self.folder)
        splits = []
        for split, sizes in (("train", self.sizes), ("test", (4, 4))):
            writer = ArrayRecordWriter(str(self.shard(split)), "group_size:1")
            for index, height in enumerate(sizes):
                example = tf_example_pb2.Example()
                fields = example.features.feature
                pixels = np.full((height, 4, 3), 10 * index, np.uint8)
                fields["photo"].bytes_list.value.append(png_bytes(pixels))
                if self.extra:
                    fields["mask"].bytes_list.value.append(png_bytes(255 - pixels))
                fields["kind"].int64_list.value.append(index % 2)
                writer.write(example.SerializeToString())
            writer.close()
            splits.append({"name": split, "shardLengths": [str(len(sizes))]})
        info = {
            "name": "tiny",
            "version": "1.0.0",
            "fileFormat": "array_record",
            "splits": splits,
        }
        self.write_info(info)
        return self

    def write_info(self, info):
        (self.folder / "dataset_info.json").write_text(json.dumps(info))

    def load(self, name="tiny", **options):
        return load_dataset("tfds", name, data_dir=str(self.root), **options)

    def fails(self, match, name="tiny", **options):
        return fails(match, "tfds", name, data_dir=str(self.root), **options)


def png_bytes(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
