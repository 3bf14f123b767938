"""What the tests of damaged and foreign checkpoints share: files and metadata."""

import json

import numpy as np

from dasm_jax import checkpoint

LIKE = [np.zeros(3, np.float32), np.zeros((), np.int64)]


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def record_of(item):
    return json.loads((item / "metadata.json").read_text())


def write_record(item, record):
    """As whoever knows how it is done."""
    (item / "metadata.json").write_text(json.dumps(checkpoint.sealed(record)))


def one_line(caught):
    """The message of what was raised, which must be one line."""
    message = str(caught.value)
    assert "\n" not in message
    return message


def data_file(item):
    """The file that holds most of the numbers."""
    return max((item / "tree").rglob("?" * 32), key=lambda path: path.stat().st_size)


def lose_a_file(item):
    data_file(item).unlink()


def empty_metadata(item):
    (item / "metadata.json").write_text("")
