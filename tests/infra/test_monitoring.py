"""Dashboards and alerts speak of metrics that exist, in expressions that Prometheus understands."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray.dashboard.modules.metrics.dashboards as rays_dashboards
from prometheus_client import Metric

from cp_serve.answers import STATUSES
from cp_serve.metrics import Metrics
from cp_serve.traffic import Traffic
from services.errors import PalimpsestError
from tests.infra.files import INFRA, compose, document

RULES: list[dict[str, Any]] = document("prometheus/alerts.yaml")["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = document("grafana/palimpsest.json")["panels"]
_ADDED = {"job", "instance"}
"""Labels that Prometheus itself puts on what it reads."""


def families() -> list[Metric]:
    """What the product counts."""
    return [*Metrics().collect(), *Traffic().collect()]


def ours() -> dict[str, set[str]]:
    """Name of every series that the product can export -> its labels. (Labels show once something was counted.)"""
    metrics, traffic = Metrics(), Traffic()
    metrics.requests.labels("pets", "live", "drawn").inc()
    traffic.count("GET", "/", 200, 0.1)
    samples = [sample for family in (*metrics.collect(), *traffic.collect()) for sample in family.samples]
    names = {sample.name for sample in samples}
    return {name: {label for s in samples if s.name == name for label in s.labels} | _ADDED for name in names}


def rays() -> set[str]:
    """Names in the dashboards that Ray ships."""
    folder = Path(rays_dashboards.__file__).parent
    return {name for path in folder.glob("*.py") for name in re.findall(r"\bray_\w+", path.read_text())}


def expressions() -> Iterator[tuple[str, str]]:
    """Where, and the expression; Grafana's interval as a duration."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def selectors(expression: str) -> list[Any]:
    """Every series that an expression reads."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), pre_visit=visit)
    return found


def grouping(expression: str) -> set[str]:
    """Labels that its aggregations keep."""
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            found.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), pre_visit=visit)
    return found


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_an_expression_reads_what_is_exported(place: str, expression: str) -> None:
    series, read = ours(), selectors(expression)
    assert read, place
    labels = set().union(*(series.get(one.name, set()) for one in read))
    for one in read:
        assert one.name in series or one.name == "up" or one.name in rays(), one.name
        if one.name in series:
            assert {matcher.name for matcher in one.matchers.matchers} <= series[one.name], place
    if all(one.name in series for one in read):
        assert grouping(expression) <= labels, place


def test_a_slip_would_be_found() -> None:
    assert "palimpsest_que_seconds_bucket" not in ours()
    with pytest.raises(ValueError, match="parenthesis"):
        promql_parser.parse("sum(rate(up[5m])")


OUTCOMES = {kind.code for kind in PalimpsestError.__subclasses__()} | {"drawn", "cancelled"}


@pytest.mark.parametrize(("label", "known"), [("outcome", OUTCOMES), ("status", set(map(str, STATUSES)))])
def test_outcomes_and_statuses_are_those_of_errors(label: str, known: set[str]) -> None:
    """An alert on an outcome or a status that nothing ever has would never fire."""
    values = {
        value
        for _, expression in expressions()
        for one in selectors(expression)
        for matcher in one.matchers.matchers
        if matcher.name == label
        for value in matcher.value.split("|")
    }
    assert values
    assert values <= known


def test_every_family_is_on_the_dashboard_or_in_an_alert() -> None:
    read = {one.name for _, expression in expressions() for one in selectors(expression)}
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in read}
    assert {family.name for family in families()} <= shown


def test_an_alert_says_how_grave_and_what() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["alert"] in (INFRA.parent / "docs" / "operations.md").read_text(), "what to do about it"


def promtool(*arguments: str, cwd: Path) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("NO PROMTOOL: alerts are parsed, but not run (Debian: apt-get install prometheus)")
    result = subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_alerts_fire_on_synthetic_figures() -> None:
    promtool("test", "rules", "alerts_test.yaml", cwd=INFRA / "prometheus")
    tested = (INFRA / "prometheus" / "alerts_test.yaml").read_text()
    assert all(re.search(rf"alertname: {rule['alert']}\b", tested) for rule in RULES)


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    text = (INFRA / "prometheus" / "prometheus.yml").read_text().replace("/run/secrets/", f"{tmp_path}/")
    (tmp_path / "watch_token").touch()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(INFRA / "prometheus")))
    promtool("check", "config", "prometheus.yml", cwd=tmp_path)


def test_what_is_scraped_is_there() -> None:
    jobs = {job["job_name"]: job for job in document("prometheus/prometheus.yml")["scrape_configs"]}
    services = compose()["services"]
    (target,) = jobs["palimpsest"]["static_configs"][0]["targets"]
    assert (target.partition(":")[0] in services, target.partition(":")[2]) == (True, "8000")
    (discovery,) = jobs["ray"]["dns_sd_configs"]
    for name in discovery["names"]:
        assert f"--metrics-export-port={discovery['port']}" in services[name]["command"]


def test_panels_have_a_place_of_their_own_and_a_source() -> None:
    source = document("grafana/datasource.yaml")["datasources"][0]["uid"]
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(one["gridPos"]["x"] + one["gridPos"]["w"] <= 24 for one in PANELS)
    assert not [(a["title"], b["title"]) for a, b in combinations(PANELS, 2) if overlap(a["gridPos"], b["gridPos"])]
    for panel in PANELS:
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": source}


def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    across = a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
    return across and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]


def test_grafana_finds_what_it_is_given() -> None:
    mounts = dict(volume.split(":")[:2] for volume in compose()["services"]["grafana"]["volumes"])
    folder = document("grafana/dashboards.yaml")["providers"][0]["options"]["path"]
    assert mounts["../grafana/palimpsest.json"].startswith(f"{folder}/")
    assert mounts["../grafana/datasource.yaml"].startswith("/etc/grafana/provisioning/datasources/")
    assert mounts["../grafana/dashboards.yaml"].startswith("/etc/grafana/provisioning/dashboards/")
