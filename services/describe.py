"""What MLflow's pages say of a version and of a lineage, in Markdown, for people who know no other tool of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from urllib.parse import quote

from services.manifest import Manifest
from services.tree import draw_tree
from services.versions import Verdict, VersionInfo

_PAGE = 5000  # characters of a version's or lineage's page: MLflow's columns in PostgreSQL take no more
_NOTE = 8000  # of a run's page: MLflow's tags take no more
_REASONS, _NAMES = 8, 40  # of a version's, that its page names
_GAP, _COUNT = 2, 80  # characters between two parts, and of the line that tells how many are left out
_TREE, _LINE = 4000, 400  # characters of a lineage's tree on its page, and of one line of it


def describe_version(manifest: Manifest, *, verdict: Verdict, job: str, experiment_id: str, pictures: str = "") -> str:
    """A version's page.

    Args:
        manifest: of the version.
        verdict: what the gate said.
        job: id of the job; empty if there was none.
        experiment_id: of its run.
        pictures: path of a picture among its run's artifacts; empty for none.
    """
    content, origin = manifest.content, manifest.provenance
    newest = content.concepts[-1]
    older = max(0, len(content.concepts) - _NAMES)
    failed = [*verdict.reasons[:_REASONS], *_more(len(verdict.reasons) - _REASONS)]
    noun = f" ({_plain(newest.noun)})" if newest.noun else ""
    parent = f"[version {origin.parent}](#/models/{content.lineage}/versions/{origin.parent})"
    rows = {
        "knows": " ".join([_code(f"<{concept.name}>") for concept in content.concepts[-_NAMES:]] + _more(older)),
        "parent": "none, a first version" if origin.parent is None else parent,
        "method": _code(origin.method),
        "gate": "passed" if verdict.passed else f"failed: {_plain('; '.join(failed))}",
        "base model": f"{_plain(content.base.id)} {_code(content.base.revision)}",
        "digest": _code(manifest.digest),
        "run": f"[curves, settings, pictures, what is still known](#/experiments/{experiment_id}/runs/{origin.run_id})",
        "job": _code(job) if job else "none",
    }
    # The run and the manifest have the drift of every concept.
    metrics = {name: value for name, value in origin.metrics.items() if not name.startswith("drift.")}
    rows |= {_plain(name): f"{value:.4g}" for name, value in sorted(metrics.items())}
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    shown = _picture(origin.run_id, pictures, "one row a concept, as this version draws it")
    picture = ["", shown] if pictures else []
    return "\n".join([f"Learned {_code(f'<{newest.name}>')}{noun}.", *picture, "", *table])[:_PAGE]


def describe_run(
    version: VersionInfo, *, matrix: str, heat_map: str, grid: str = "", timelines: Mapping[str, str] | None = None
) -> str:
    """A run's page.

    Args:
        version: what the run became.
        matrix: the forgetting matrix, a Markdown table.
        heat_map: path of its picture among the run's artifacts; empty for none.
        grid: path of the sample grid; empty for none.
        timelines: concept -> path of its pictures over the versions of the branch; as many of the last as there is
            room for are shown.
    """
    link = f"[version {version.number}](#/models/{version.lineage}/versions/{version.number})"
    top = [f"Learned {_code(f'<{version.concept}>')}, which made {link} of {_code(version.lineage)}."]
    if not version.gate_passed:
        top.append(f"The gate refused it: {_plain('; '.join(version.gate_reasons[:_REASONS]))}.")
    if grid:
        top.append(_picture(version.run_id, grid, "one row a concept, as this version draws it"))
    top += [
        "**What is still known.** Of each concept's pictures, the share that diffusion-classifier scores put right "
        "with each version of this branch: its own images where it was learned, its parent's drawings later. Empty: "
        "not judged, as its keys and values moved least.",
        matrix,
    ]
    if heat_map:
        top.append(_picture(version.run_id, heat_map, "the same as a heat map"))
    over_versions = [
        f"{_code(f'<{name}>')} over the versions, from the same seeds:\n\n{_picture(version.run_id, path, name)}"
        for name, path in (timelines or {}).items()
    ]
    room = _NOTE - sum(len(part) + _GAP for part in top)
    return "\n\n".join([*top, *_newest(over_versions, room, "older concepts, whose pictures are among the artifacts")])


def describe_lineage(lineage: str, versions: Sequence[VersionInfo]) -> str:
    """A lineage's page: where its aliases are, its tree, and what moving an alias does."""
    named = [f"{_code(alias)} is version {version.number}" for version in versions for alias in version.aliases]
    return "\n".join(
        [
            f"Concepts of {_code(lineage)}, learned one after the other. Each version grew from its parent:",
            "",
            "```",
            *_newest([line[:_LINE] for line in draw_tree([asdict(v) for v in versions])], _TREE, "older versions"),
            "```",
            "",
            f"{', '.join(named) or 'No version has an alias'}.",
            "",
            "`live` is what is served, and what the next concept is learned on. Move it to another version to roll "
            "back or forward: what is served follows within seconds. `candidate` is the newest version that was not "
            "promoted.",
        ]
    )[:_PAGE]


def _newest(parts: Sequence[str], room: int, older: str) -> list[str]:
    """The last of some parts, whole, as many as there is room for (characters), and how many `older` ones there are."""
    if sum(len(part) + _GAP for part in parts) <= room:
        return list(parts)
    room, shown = room - _COUNT, list[str]()
    for part in reversed(parts):
        room -= len(part) + _GAP
        if room < 0:
            break
        shown.insert(0, part)
    return [f"… {len(parts) - len(shown)} {older}", *shown]


def _picture(run_id: str, path: str, about: str) -> str:
    return f"![{about}](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})"


def _more(count: int) -> list[str]:
    return [f"and {count} more"] if count > 0 else []


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', ' ').split())}`"


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else, on one line."""
    escaped = "".join(f"&#{ord(letter)};" if letter in "<>|&*_`[]!\\" else letter for letter in text)
    return " ".join(escaped.split())
