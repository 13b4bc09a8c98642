"""The tree of a lineage's versions as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NAMES = 8  # newest concepts of a version that its line names; those before stand in its ancestors' lines


def draw_tree(versions: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a version. The newest child follows below its parent; older branches stand indented between them.

    Args:
        versions: as `GET /v1/lineages/{L}` gives them.
    """
    children: dict[int | None, list[Mapping[str, Any]]] = {}
    known = {version["number"] for version in versions}
    for version in versions:
        parent = version["parent"] if version["parent"] in known else None
        children.setdefault(parent, []).append(version)
    return [line for root in children.get(None, []) for line in _lines(root, children)]


def _lines(version: Mapping[str, Any], children: Mapping[int | None, list[Mapping[str, Any]]]) -> Iterator[str]:
    line: Mapping[str, Any] | None = version
    while line is not None:
        yield _label(line)
        below = children.get(line["number"], [])
        for branch in below[:-1]:
            first, *rest = _lines(branch, children)
            yield f"├─ {first}"
            yield from (f"│  {text}" for text in rest)
        line = below[-1] if below else None


def _label(version: Mapping[str, Any]) -> str:
    older = len(version["concepts"]) - _NAMES
    concepts = " ".join([f"<{name}>" for name in version["concepts"][-_NAMES:]])
    concepts = f"{older} more {concepts}" if older > 0 else concepts
    aliases = "".join(f"  [{alias}]" for alias in version["aliases"])
    gate = "" if version["gate_passed"] else f"  gate failed: {'; '.join(version['gate_reasons'])}"
    return f"{version['number']}  {concepts}  {version['method']}{aliases}{gate}"
