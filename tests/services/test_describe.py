"""What MLflow's pages say of a version and of a lineage."""

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.describe import describe_lineage, describe_run, describe_version
from services.manifest import Concept, Content, Manifest, Provenance
from services.versions import Verdict, VersionInfo
from tests.lineages import BASE

MLFLOWS_COLUMN = 5000
"""Characters of a description that MLflow's schema has room for; PostgreSQL refuses more."""
MLFLOWS_TAG = 8000
"""Of a tag of a run, which its description is."""


def test_a_page_fits_whatever_the_lineage_has_learned() -> None:
    names = [f"{number:03}".replace("0", "o").replace("1", "i").rjust(32, "x") for number in range(200)]
    concepts = tuple(Concept(name=name, noun="n" * 64, vectors=1) for name in names)
    content = Content(lineage="x" * 32, base=BASE, rank=2, alpha=2.0, concepts=concepts, files={})
    origin = Provenance(
        parent=1,
        parent_digest=BASE.revision,
        method="ewc_dc",
        settings={},
        metrics={f"drift.{name}.kv": 0.5 for name in names} | {"new.loss": 0.5},
        run_id="r" * 32,
        created="2026-01-01T00:00:00Z",
    )
    manifest = Manifest(digest=content.digest, content=content, provenance=origin)
    verdict = Verdict(
        passed=False, reasons=tuple(f"<{name}> changed: keys and values by 9, at most 1" for name in names)
    )
    page = describe_version(manifest, verdict=verdict, job="j" * 64, experiment_id="1", pictures="samples/concepts.png")
    assert len(page) < MLFLOWS_COLUMN
    assert f"`<{names[-1]}>`" in page
    assert page.endswith("| new.loss | 0.5 |"), "nothing was cut off"
    assert page.count("and 160 more") == 1
    assert "and 192 more" in page
    assert "drift." not in page


def _lineage(length: int, name: str, *, live: int, reasons: tuple[str, ...] = ()) -> list[VersionInfo]:
    """A chain of versions."""
    names = [f"{name}{number}" for number in range(length)]
    return [
        VersionInfo(
            lineage="pets",
            number=number,
            parent=number - 1 or None,
            digest="",
            concepts=tuple(names[:number]),
            method="ewc_dc",
            base_revision="",
            run_id="r",
            created=datetime(2026, 1, 1, tzinfo=UTC),
            gate_passed=not reasons,
            gate_reasons=reasons,
            promoted=True,
            aliases=("live",) if number == live else (),
        )
        for number in range(1, length + 1)
    ]


@pytest.mark.parametrize("reasons", [0, 500])
@pytest.mark.parametrize("name", ["a", "x" * 28])
def test_a_lineages_page_fits_however_long_it_is(name: str, reasons: int) -> None:
    page = describe_lineage("pets", _lineage(300, name, live=2, reasons=("<a> changed",) * reasons))
    assert len(page) < MLFLOWS_COLUMN
    assert f"\n300  292 more <{name}292> " in page
    assert " older versions\n" in page
    assert "\n2  " not in page
    assert "`live` is version 2." in page, "though its line is not there"
    assert page.endswith("not promoted.")


@pytest.mark.parametrize(("count", "width", "fits"), [(24, 32, False), (24, 3, True), (3, 32, True)])
def test_a_runs_page_fits_and_breaks_no_picture(count: int, width: int, fits: bool) -> None:
    """The newest concepts are those that are shown."""
    names = [chr(ord("a") + number) * width for number in range(count)]
    (version,) = _lineage(1, "a", live=1, reasons=tuple(f"<{'z' * 32}> changed: {'x' * 60}" for _ in range(20)))
    version = replace(version, lineage="l" * 32, concept=names[-1], run_id="r" * 32)
    row = f"| this {'| 0.50 ' * 16}|"
    matrix = "\n".join([f"| version {f'| `<{chr(122) * 32}>` ' * 16}|", "| --- " * 17 + "|", *[row] * 12])
    paths = {name: f"samples/over-versions/{name}.jpg" for name in names}
    page = describe_run(version, matrix=matrix, heat_map="forgetting/matrix.png", grid="samples/x.png", timelines=paths)
    assert len(page) <= MLFLOWS_TAG
    assert matrix in page
    pictures = [
        re.fullmatch(r"!\[([^]]+)\]\(get-artifact\?path=\S+&run_uuid=r{32}\)", line) for line in page.split("\n")
    ]
    shown = [found[1] for found in pictures if found][2:]
    assert page.count("get-artifact") == len(shown) + 2, "each of them whole"
    assert page.count("over the versions, from the same seeds:") == len(shown)
    assert shown == names[-len(shown) :]
    assert (len(shown) == count) == fits
    left_out = f"\n\n… {count - len(shown)} older concepts, whose pictures are among the artifacts\n\n"
    assert (left_out in page) != fits


def test_a_short_lineage_is_told_whole() -> None:
    page = describe_lineage("pets", _lineage(3, "a", live=3))
    assert "\n1  <a0>  ewc_dc\n2  <a0> <a1>  ewc_dc\n3  <a0> <a1> <a2>  ewc_dc  [live]\n" in page
    assert "older versions" not in page
    assert "No version has an alias." in describe_lineage("pets", [])
