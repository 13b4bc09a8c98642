"""`GET /`: where things are, for a person with a browser."""

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from cp_serve.routes.access import Responses

router = APIRouter(tags=["pages"])
_LINKS = {
    "/docs": "the HTTP API, to read and to try",
    "/openapi.json": "its OpenAPI document",
    "/v1/models": "the lineages and versions that can draw",
    "/readyz": "what is served now",
    "/metrics": "figures for Prometheus",
}
_ITEMS = "".join(f'<li><a href="{path}">{path}</a>: {about}</li>' for path, about in _LINKS.items())
_PAGE = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Palimpsest</title>
<h1>Palimpsest</h1>
<p>This server draws. It speaks the OpenAI Images API at <code>/v1</code>.</p>
<ul>{_ITEMS}</ul>
</html>
"""
_HTML: Responses = {200: {"content": {"text/html": {}}, "description": "The page."}}
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@router.get("/", response_class=Response, responses=_HTML)
async def index() -> HTMLResponse:
    """A page that lists the routes for people."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})
