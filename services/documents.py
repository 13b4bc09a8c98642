"""Measured reports as parts of one Markdown document: each made again by itself, the others left as they are."""

import re
import shutil
from pathlib import Path

from services.errors import InputError

_LINK = re.compile(r"\]\(([^):#]+)\)")


def check_publishable(document: Path) -> None:
    """Raise `InputError` if a report cannot be published to that file."""
    if document.suffix != ".md" or document.is_dir():
        raise InputError(f"publish: {str(document)!r} must be a file that ends in .md.", param="publish")


def publish_part(report: Path, document: Path, part: str) -> None:
    """Put a report into a document, in the place of the part of that name or at the end.

    The files beside the report that it links to are copied into a folder of their own beside the document,
    `<document's name>/<part>`, from which everything else is deleted.

    Raises:
        InputError: the document's name does not end in `.md`.
    """
    check_publishable(document)
    folder = document.with_suffix("") / part
    shutil.rmtree(folder, ignore_errors=True)
    text = report.read_text("utf-8")
    linked = [link for link in dict.fromkeys(_LINK.findall(text)) if (report.parent / link).is_file()]
    for link in linked:
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(report.parent / link, folder / link)
    there = folder.relative_to(document.parent).as_posix()
    text = _LINK.sub(lambda found: f"]({there}/{found[1]})" if found[1] in linked else found[0], text)
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(_with_part(document.read_text("utf-8") if document.exists() else "", part, text), "utf-8")


def _with_part(document: str, part: str, text: str) -> str:
    begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{text.strip()}\n\n{end}{after}"
