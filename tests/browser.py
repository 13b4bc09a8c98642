"""A real browser, as a person uses MLflow's pages with it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

_PATIENCE_MS = 240_000


@contextmanager
def browsing() -> Iterator[Page]:
    """A page of a fresh headless Chromium, the one that the machine has."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no browser: install Debian's package chromium"
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags, timeout=_PATIENCE_MS)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(_PATIENCE_MS)
            expect.set_options(timeout=_PATIENCE_MS)
            yield page
        finally:
            browser.close()


class ModelPages:
    """MLflow's pages of one registered model.

    Args:
        page: of a browser.
        uri: of the MLflow server.
        lineage: name of the registered model.
        shots: folder for the screenshots.
    """

    def __init__(self, page: Page, uri: str, lineage: str, shots: Path) -> None:
        self.page, self._uri, self._home, self._shots = page, uri, f"{uri}/#/models/{lineage}", shots

    def open_model(self) -> None:
        """The page with all versions."""
        self.page.goto(self._home)
        self.page.reload()  # another page of the same document is another fragment only

    def open_version(self, number: int) -> None:
        """The page of one version."""
        self.page.goto(f"{self._home}/versions/{number}")
        self.page.reload()

    def open_run(self, experiment_id: str, run_id: str) -> None:
        """The page of one run."""
        self.page.goto(f"{self._uri}/#/experiments/{experiment_id}/runs/{run_id}")
        self.page.reload()

    def await_picture(self, name: str) -> None:
        """Wait until an artifact's picture is shown."""
        self.page.wait_for_function(
            "name => [...document.images].some(i => i.src.includes('get-artifact') && i.src.includes(name) "
            "&& i.naturalWidth > 0)",
            arg=name,
        )

    def give_alias(self, alias: str) -> None:
        """On a version's page: have it called so."""
        self.page.locator('button[title="Edit aliases"], button[title="Add aliases"]').first.click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("combobox").fill(alias)
        self.page.keyboard.press("Enter")
        self.shoot("dialog")
        dialog.get_by_role("button", name="Save aliases").click()
        expect(dialog).to_be_hidden()

    def shoot(self, name: str) -> Path:
        """Take a screenshot."""
        path = self._shots / f"{name}.png"
        self.page.screenshot(path=path)
        return path
