"""Fuzz the reader of sets for a while: ``make fuzz``, or with ``ARGS="--seconds 60"``.

Whole and odd archives are mutated, as bytes and field by field in archives whose
checksums are right, so that mutations get past them. Whatever is no set must be refused
by a ``UserError`` of one line. With atheris installed, which is optional, coverage
guides the choice of what to mutate further.
"""

import argparse
import collections
import contextlib
import inspect
import io
import os
import random
import re
import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from dasm_jax import npz, stored_counts, synthetic_files
from dasm_jax.errors import UserError
from dasm_jax.synthetic_files import load_set
from dasm_jax.types import ArrayDataset, Dataset, Normalization

try:
    import atheris  # type: ignore[import-not-found]
except ImportError:
    atheris = None

STATISTICS = Normalization((0.5,), (0.25,))
FIELDS = ("images", "labels", "stored_pixels", "stored_labels", "factor", "mean", "std")
DESCRIPTIONS = (
    *("|u1", "<f2", "<f4", ">f4", "<f8", "<f16", "<c8", "|b1", "<i8", ">u2", "<u8"),
    *("|O", "<U0", "<U9", "|S3", "|V8", "<M8[s]", "(3,)<f4", "<f4,<i4", "nonsense"),
)
SIZES = (0, 1, 2, 3, 4, 8, -1, 2**31, 2**63, 10**30)
LITERALS = (
    "{",
    "1+",
    "()",
    "{'descr': 'O'}",
    "(" * 500,
    "'\\d'",
    "9" * 5000,
    "1L",
    "\0",
)


def small_dataset() -> Dataset:
    """Two classes of 4×4 images; only its form matters here."""
    part = ArrayDataset(np.zeros((2, 4, 4, 1), np.uint8), np.arange(2, dtype=np.int32))
    return Dataset("tiny", part, part, ("cat", "dog"), "")


def whole_fields() -> dict[str, np.ndarray]:
    """A set that is accepted, with every field that is read."""
    labels = np.repeat(np.arange(2, dtype=np.int32), 4)
    images = np.linspace(0, 1, 8 * 16, dtype=np.float32).reshape(8, 4, 4, 1)
    return {
        "images": images,
        "labels": labels,
        "segments": np.ones(8, np.int32),
        "stored_pixels": images[::4],
        "stored_labels": labels[::4],
        "stored_segments": np.ones(2, np.int32),
        "factor": np.int32(2),
        "formation": np.str_("single"),
        "mean": np.float32(STATISTICS.mean),
        "std": np.float32(STATISTICS.std),
        "class_names": np.array(["cat", "dog"]),
    }


def packed(save=np.savez, **changes) -> bytes:
    """The archive of ``whole_fields`` with some changed, or left out as None."""
    file = io.BytesIO()
    fields = whole_fields() | changes
    save(file, **{name: value for name, value in fields.items() if value is not None})
    return file.getvalue()


def seeds() -> list[bytes]:
    """Archives to start from."""
    images = np.zeros((4, 4, 4, 1), np.uint8)
    nothing = dict.fromkeys(whole_fields())
    alone = {**nothing, "images": images, "labels": np.arange(4) % 2}
    odd = np.array([None, {}], object)
    return [
        packed(),
        packed(np.savez_compressed),
        packed(**alone),
        packed(labels=odd),
        packed(images=np.full((8, 4, 4, 1), np.nan)),
        b"",
        b"PK\5\6" + bytes(18),
    ]


def mutated_header(npy: bytes, rng: random.Random) -> bytes:
    """An array that says something else of itself, or nothing that is known."""
    shape = tuple(rng.choice(SIZES) for _ in range(rng.randrange(5)))
    text = rng.choice(
        [
            repr(
                {
                    "descr": rng.choice(DESCRIPTIONS),
                    "fortran_order": rng.choice([True, False, 1]),
                    "shape": rng.choice([shape, (8, 4, 4, 1), (8,), list(shape), ()]),
                }
            ),
            rng.choice(LITERALS),
        ]
    ).encode()
    version = rng.choice([1, 1, 1, 2, 3, 9])
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    length = rng.choice([length, length, length, b"\xff" * len(length)])
    return (
        b"\x93NUMPY" + bytes([version, 0]) + length + text + npy[-rng.randrange(600) :]
    )


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, put in or taken from elsewhere."""
    content = bytearray(data)
    for _ in range(1 + rng.randrange(8)):
        place = rng.randrange(len(content) + 1)
        span = 1 + rng.randrange(16)
        kind = rng.randrange(4)
        if kind == 0 and place < len(content):
            content[place] = rng.choice(
                [0, 255, content[place] ^ 1 << rng.randrange(8)]
            )
        elif kind == 1:
            del content[place : place + span]
        elif kind == 2:
            content[place:place] = rng.randbytes(span)
        else:
            other = rng.randrange(len(content) + 1)
            content[place : place + span] = content[other : other + span]
    return bytes(content)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A neighbour of an archive; of what is none, other bytes."""
    if rng.random() < 0.4:
        return flipped(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:
        return flipped(data, rng)
    file = io.BytesIO()
    chosen = rng.randrange(len(members) + 1)
    method = rng.choice([0, 0, 8, 8, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(file, "w", method) as archive:
        for number, (name, npy) in enumerate(members):
            if number == chosen:
                npy = rng.choice([mutated_header, flipped])(npy, rng)
                name = rng.choice([name, name, name, "../../x", f"{FIELDS[0]}.npy"])
            if number != chosen or rng.random() < 0.9:
                with contextlib.suppress(UserWarning):  # a name twice
                    archive.writestr(name, npy)
    return file.getvalue()


class Harness:
    """Reads what it is given, and keeps count."""

    def __init__(self, folder: Path, seconds: float):
        self.path, self.dataset = folder / "set.npz", small_dataset()
        self.executions = self.accepted = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self.crashes: dict[str, bytes] = {}
        self.began, self.seconds = time.monotonic(), seconds

    @property
    def over(self) -> bool:
        return time.monotonic() - self.began > self.seconds

    def read(self, data: bytes) -> None:
        """Load bytes as a set; anything but a set or a clear line is a crash."""
        self.executions += 1
        self.path.write_bytes(data)
        try:
            found = load_set(self.path, self.dataset, STATISTICS)
            pixels = found.decoded.images
            assert pixels.dtype == np.float32
            assert (np.abs(pixels - 0.5) < 0.51).all()
            self.accepted += 1
        except UserError as error:
            text = str(error).replace(str(self.path), "FILE")
            self.refused[re.sub(r"[^ a-z]+", "", text)[:60]] += 1
            if len(text.splitlines()) != 1:
                self.crashes["more than one line"] = data
        except Exception as error:
            self.crashes[f"{type(error).__name__}: {error}"[:200]] = data

    def report(self) -> str:
        """What happened, in lines."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        lines = [
            f"seconds {time.monotonic() - self.began:.0f}",
            f"guided by coverage {'no' if atheris is None else 'yes'}",
            f"executions {self.executions:,}",
            f"accepted {self.accepted:,}",
            f"refused {sum(self.refused.values()):,}",
            f"distinct documented errors {len(self.refused):,}",
            f"crashes {len(self.crashes)}",
            f"peak memory {peak / 1024:.0f} MB",
        ]
        return "\n".join([*lines, *(f"crash: {text}" for text in self.crashes)])


def run_mutations(harness: Harness, seed: int) -> None:
    """Mutate seeds, and what came of them, until the time is over."""
    rng, corpus = random.Random(seed), seeds()
    for data in corpus:
        harness.read(data)
    known = len(harness.refused)
    while not harness.over:
        data = mutated(rng.choice(corpus), rng)
        harness.read(data)
        if len(harness.refused) > known:  # a way of refusing that is new
            known = len(harness.refused)
            corpus.append(data)


def run_guided(harness: Harness, folder: Path) -> None:
    """The same mutations, chosen by coverage; does not return."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds()):
        (corpus / f"{number}").write_bytes(data)

    def one_input(data: bytes) -> None:
        harness.read(data)
        if harness.over:
            print(harness.report(), flush=True)
            os._exit(bool(harness.crashes))

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        return mutated(data, random.Random(seed))[:most]

    for module in (npz, stored_counts, synthetic_files, zipfile):
        for thing in vars(module).values():
            members = vars(thing).values() if inspect.isclass(thing) else [thing]
            for function in filter(inspect.isfunction, members):
                atheris.instrument_func(function)
    atheris.Setup(
        [sys.argv[0], "-max_len=8192", "-rss_limit_mb=4096", str(corpus)],
        one_input,
        custom_mutator=mutator,
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        harness = Harness(Path(name), options.seconds)
        if atheris is not None:
            run_guided(harness, Path(name))
        run_mutations(harness, options.seed)
    print(harness.report())
    sys.exit(bool(harness.crashes))


if __name__ == "__main__":
    main()
