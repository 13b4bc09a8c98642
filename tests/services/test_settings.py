"""The settings, and their table in docs/operations.md."""

from pathlib import Path

import pytest

from services.cli import _client
from services.errors import InputError
from services.settings import Settings, get_settings

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def _table() -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "`~/.palimpsest`" if name == "home" else f"`{field.default}`" if field.default != "" else "empty"
        rows.append(f"| `PALIMPSEST_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_every_setting_is_documented() -> None:
    assert _table() in OPERATIONS.read_text(), f"put this into docs/operations.md:\n{_table()}"


def test_another_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, http_port=1234, store="s3://bucket/prefix", lease_seconds=0.5)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_the_command_asks_where_clients_do() -> None:
    assert _client(Settings(http_port=1234)).url == "http://127.0.0.1:1234"
    assert _client(Settings(public_url="https://pictures.example/")).url == "https://pictures.example"


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    get_settings.cache_clear()
    monkeypatch.setenv("PALIMPSEST_HTTP_PORT", "eighty")
    with pytest.raises(InputError, match="PALIMPSEST_HTTP_PORT: Input should be a valid integer"):
        get_settings()
    get_settings.cache_clear()
