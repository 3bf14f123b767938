"""Markdown that an experiment writes: names in it, and a section that it renews."""

import html
import re
import tempfile
from pathlib import Path

from dasm_jax import hosts
from dasm_jax.errors import UserError, printable
from dasm_jax.files import write_atomically


def as_text(name: str) -> str:
    """A name or message that reads as it is in Markdown, in a cell of a table too.

    Whatever could begin a tag, a link, a cell or a mark-up becomes a character
    reference, which never does; ``html.unescape`` gives the name back.
    """
    text = html.escape(printable(name), quote=False)
    return re.sub(r"[|\[\]*`\\]", lambda found: f"&#{ord(found[0])};", text)


def slug(name: str) -> str:
    """A name as part of a file name, whatever is in it."""
    return "".join(ch if ch.isalnum() or ch in "-_" else "_" for ch in name)


def dataset_slug(name: str) -> str:
    """A dataset as part of a file name; of a folder of images its last part."""
    return slug(Path(name).name)


def renew_section(document: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of a section, or append it.

    Args:
      document: a file that may not be there.
      name: of the section, in any characters.
      text: Markdown.

    Raises:
      UserError: the document cannot be read or written.
    """
    if not hosts.is_first():
        return
    name = as_text(name)  # the end of a comment would end the marker
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
