"""The tree of versions as text."""

from services.tree import draw_tree


def _version(number: int, parent: int | None, *concepts: str, **fields: object) -> dict[str, object]:
    plain = {"method": "ewc_dc", "aliases": [], "gate_passed": True, "gate_reasons": []}
    return plain | {"number": number, "parent": parent, "concepts": concepts} | fields


def test_a_chain_stands_in_one_column() -> None:
    versions = [_version(1, None, "a"), _version(2, 1, "a", "b"), _version(3, 2, "a", "b", "c", aliases=["live"])]
    assert draw_tree(versions) == ["1  <a>  ewc_dc", "2  <a> <b>  ewc_dc", "3  <a> <b> <c>  ewc_dc  [live]"]


def test_older_branches_stand_indented_between_a_version_and_its_newest_child() -> None:
    versions = [_version(1, None), _version(2, 1), _version(3, 2), _version(4, 1, aliases=["live"])]
    assert [line.partition("    ")[0] for line in draw_tree(versions)] == ["1", "├─ 2", "│  3", "4"]


def test_of_many_concepts_the_newest_are_named() -> None:
    (line,) = draw_tree([_version(12, None, *"abcdefghijkl", aliases=["live"])])
    assert line == "12  4 more <e> <f> <g> <h> <i> <j> <k> <l>  ewc_dc  [live]"


def test_a_failed_gate_says_why() -> None:
    (line,) = draw_tree([_version(1, None, "a", gate_passed=False, gate_reasons=["<a> draws empty pictures"])])
    assert line == "1  <a>  ewc_dc  gate failed: <a> draws empty pictures"


def test_versions_whose_parent_was_deleted_are_shown() -> None:
    assert len(draw_tree([_version(3, 2), _version(5, 4)])) == 2


def test_no_versions() -> None:
    assert draw_tree([]) == []
