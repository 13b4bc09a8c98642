"""Reports as parts of a document."""

from pathlib import Path

import pytest

from services.documents import publish_part
from services.errors import InputError


def report(folder: Path, text: str, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    path = folder / "report.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_part_is_made_again_and_the_others_stay(tmp_path: Path) -> None:
    """With the files that it links to, and without those of its earlier version."""
    document = tmp_path / "docs" / "figures.md"
    first = report(tmp_path / "a", "# One\n\n![plot](plots/one.png) [site](https://a.example/x)", "plots/one.png")
    publish_part(first, document, "one")
    publish_part(report(tmp_path / "b", "# Two\n\n[rows](rows.csv)", "rows.csv"), document, "two")
    publish_part(report(tmp_path / "c", "# One again\n\n![plot](new.png)", "new.png"), document, "one")
    assert document.read_text() == (
        "<!-- one -->\n\n# One again\n\n![plot](figures/one/new.png)\n\n<!-- end of one -->\n"
        "<!-- two -->\n\n# Two\n\n[rows](figures/two/rows.csv)\n\n<!-- end of two -->\n"
    )
    kept = {path.relative_to(tmp_path / "docs").as_posix() for path in document.parent.rglob("*") if path.is_file()}
    assert kept == {"figures.md", "figures/one/new.png", "figures/two/rows.csv"}


def test_a_link_elsewhere_stays_what_it_is(tmp_path: Path) -> None:
    document = tmp_path / "figures.md"
    publish_part(report(tmp_path / "a", "[site](https://a.example/x) [gone](gone.png) [here](#here)"), document, "one")
    assert "[site](https://a.example/x) [gone](gone.png) [here](#here)" in document.read_text()


@pytest.mark.parametrize("name", ["figures.txt", "folder.md"])
def test_only_a_markdown_file_takes_a_report(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(InputError, match=r"must be a file that ends in \.md"):
        publish_part(report(tmp_path / "a", "# One"), tmp_path / name, "one")
