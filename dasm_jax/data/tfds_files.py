"""The files of a prepared TFDS dataset, examined without importing TFDS.

So a start from the decoded cache never pays for that import, and a missing shard is
found at once: TFDS would open the split, know its length, and fail half-way.
"""

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from dasm_jax.data import cache
from dasm_jax.errors import UserError

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class Prepared(NamedTuple):
    """A dataset that ``tfds build`` left on disk."""

    folder: Path  # <data_dir>/<name>[/<config>]/<version>
    data_dir: Path
    full_name: str  # <name>[/<config>]:<version>


def find_prepared(name: str, data_dir: Path) -> Prepared | None:
    """Returns the newest prepared version of a dataset, or None.

    Raises:
        UserError: for a malformed name, or where only configs of the name are prepared.
    """
    match = re.fullmatch(r"(\w+(?:/[\w+.-]+)?)(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise UserError(
            f"config.data.name is {name!r}; a TFDS dataset is written 'name',"
            " 'name/config', 'name:1.2.3' or 'name/config:1.2.3'"
        )
    base, wanted = match.groups()
    found = [
        path.parent.relative_to(data_dir / base).parts
        for pattern in ("*", "*/*")
        for path in (data_dir / base).glob(f"{pattern}/dataset_info.json")
        # Interrupted builds leave folders with other names.
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    versions = [p[0] for p in found if len(p) == 1 and wanted in (None, p[0])]
    if versions:
        version = max(versions, key=lambda v: [int(n) for n in v.split(".")])
        return Prepared(data_dir / base / version, data_dir, f"{base}:{version}")
    configs = sorted({p[0] for p in found if len(p) == 2})
    if configs:
        raise UserError(
            f"config.data.name is {name!r}, of which {data_dir} holds the configs"
            f" {', '.join(configs)}; name one, such as '{base}/{configs[0]}'"
        )
    return None


def prepare_command(name: str, data_dir: Path) -> str:
    """Returns the shell command that prepares a dataset once."""
    return (
        f"python -m pip install tensorflow-cpu && tfds build {name}"
        f" --file_format=array_record --data_dir={shlex.quote(str(data_dir))}"
    )


def repair_hint(prepared: Prepared) -> str:
    """Returns what to do about files that cannot be used."""
    command = prepare_command(prepared.full_name, prepared.data_dir)
    return f"delete {prepared.folder} and run `{command}`"


def fingerprint(prepared: Prepared, splits: dict[str, str]) -> str:
    """Returns the sha256 of the description, the splits and the sizes of their shards.

    Args:
        prepared: the dataset.
        splits: the TFDS split of each settings field.

    Raises:
        UserError: for a missing shard, an unknown split, or files that are not
            array_record.
    """
    described = [
        [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(prepared.folder.iterdir())
        # Features and class names decide what the shards mean.
        if path.name in ("dataset_info.json", "features.json")
        or path.name.endswith("labels.txt")
    ]
    shards = []
    for path in shard_paths(prepared, splits):
        if not path.is_file():
            raise UserError(
                f"{path} is missing; copy it from where the dataset was prepared, or"
                f" {repair_hint(prepared)}"
            )
        shards.append([path.name, path.stat().st_size])
    return cache.fingerprint([described, shards, list(splits.values())])


def shard_paths(prepared: Prepared, splits: dict[str, str]) -> list[Path]:
    """Lists the files that reading these splits opens.

    Raises:
        UserError: for an unknown split, files that are not array_record, or a
            description that is none.
    """
    try:
        return _shard_paths(prepared, splits, _read_info(prepared))
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise UserError(
            f"{prepared.folder} has a dataset_info.json that TFDS did not write;"
            f" {repair_hint(prepared)}"
        ) from None


def _shard_paths(
    prepared: Prepared, splits: dict[str, str], info: dict[str, Any]
) -> list[Path]:
    formats = [info.get("fileFormat"), *info.get("alternativeFileFormats", ())]
    if "array_record" not in formats:
        raise UserError(
            f"{prepared.folder} holds {formats[0]} files, which need TensorFlow to"
            f" read; {repair_hint(prepared)}"
        )
    known = {split["name"]: split for split in info.get("splits", ())}
    used: set[str] = set()
    for field, split in splits.items():
        # 'train[:10%]+test' → train, test
        bases = [re.sub(r"\[.*", "", part).strip() for part in split.split("+")]
        for base in known if "all" in bases else bases:
            if base not in known:
                raise UserError(
                    f"{field} is {split!r}, but {prepared.full_name} has the splits"
                    f" {', '.join(known)}; choose one, or a slice such as"
                    f" '{next(iter(known), 'train')}[:1000]'"
                )
            used.add(base)
    return [
        prepared.folder / shard
        for base in sorted(used)
        for shard in _shard_names(info["name"], known[base])
    ]


def _read_info(prepared: Prepared) -> dict[str, Any]:
    path = prepared.folder / "dataset_info.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); {repair_hint(prepared)}"
        ) from error


def _shard_names(dataset: str, split: dict[str, Any]) -> list[str]:
    lengths = split.get("shardLengths", ())
    total = f"{len(lengths):05d}"
    names = []
    for index, length in enumerate(lengths):
        fields = {
            "DATASET": dataset,
            "SPLIT": split["name"],
            "FILEFORMAT": "array_record",
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": total,
            "SHARD_X_OF_Y": f"{index:05d}-of-{total}",
        }
        if int(length):  # TFDS never opens a shard without records
            name = split.get("filepathTemplate") or _TEMPLATE
            for field, value in fields.items():
                name = name.replace("{" + field + "}", value)
            if Path(name).name != name:
                raise ValueError(f"the shard {name} is outside of its folder")
            names.append(name)
    return names
