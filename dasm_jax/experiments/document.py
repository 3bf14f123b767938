"""A section of a Markdown file that an experiment renews."""

import tempfile
from pathlib import Path

from dasm_jax import hosts
from dasm_jax.errors import UserError
from dasm_jax.files import write_atomically


def renew_section(document: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of a section, or append it.

    Raises:
      UserError: the document cannot be read or written.
    """
    if not hosts.is_first():
        return
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    old = _read(document, "the document")
    if begin in old and end in old:
        head, _, rest = old.partition(begin)
        _, _, tail = rest.partition(end)
    else:
        head, tail = old + "\n" * bool(old), ""
    new = f"{head}{begin}{text}{end}{tail}"
    write_atomically(document, lambda file: file.write(new.encode()))


def check_document(document: Path, field: str) -> None:
    """See that a section could be renewed, before hours are spent on it.

    Raises:
      UserError: the document cannot be read, or its folder not be written; names
        ``field``.
    """
    _read(document, field)
    try:
        tempfile.TemporaryFile(dir=document.parent).close()
    except OSError as error:
        raise UserError(f"{field}: cannot write {document}: {error.strerror}") from None


def _read(document: Path, field: str) -> str:
    try:
        # Bytes, so that line breaks stay as they are.
        return document.read_bytes().decode() if document.exists() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: cannot read {document}: {error}") from None
