"""What MLflow's pages say of a version."""

from services.describe import describe_version
from services.manifest import Concept, Content, Manifest, Provenance
from services.versions import Verdict
from tests.lineages import BASE

MLFLOWS_COLUMN = 5000
"""Characters of a version's description that MLflow's schema has room for; PostgreSQL refuses more."""


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
