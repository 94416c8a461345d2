"""The pages of `serve_app/web`: static files, and what a page may know before it has a key.

Data flow: files of the package, read once -> `Pages.routes` -> a browser, which then uses the same
API as every client. No templates, no cookies, no request to anywhere else; the policy below has the
browser enforce that. Must not import the service.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_app import __version__
from serve_app.config import AppConfig
from serve_app.errors import UnknownRoute
from serve_app.loopback import is_loopback

FOLDER = Path(__file__).parents[1] / "web"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # pictures arrive as base64 and are shown from memory
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",  # a form that nobody caught would put the prompt into the URL
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup, whoever wrote it
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # a browser asks whether its copy is still good: see `etag`
}
PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""Whoever sends one of these came through a proxy, from who knows where."""


@dataclass(frozen=True)
class StaticFile:
    data: bytes
    media_type: str
    etag: str


@cache
def static_files() -> dict[str, StaticFile]:
    """Every file of the folder by its name; read once, so a request can name no other file."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        found[path.name] = StaticFile(data, MEDIA_TYPES[path.suffix], etag)
    return found


@dataclass(frozen=True)
class Pages:
    """The handlers; they need the configuration only."""

    config: AppConfig

    def routes(self) -> list[Route]:
        return [
            Route("/", self.playground, methods=["GET"]),
            Route("/admin", self.admin, methods=["GET"]),
            Route("/web/start.json", self.start, methods=["GET"]),
            Route("/web/{name}", self.file, methods=["GET"]),
        ]

    async def playground(self, request: Request) -> Response:
        return _reply(request, static_files()["playground.html"])

    async def admin(self, request: Request) -> Response:
        return _reply(request, static_files()["admin.html"])

    async def file(self, request: Request) -> Response:
        found = static_files().get(request.path_params["name"])
        if found is None:
            raise UnknownRoute(f"Unknown request URL: {request.method} {request.url.path}.")
        return _reply(request, found)

    async def start(self, request: Request) -> Response:
        """The version; and to a person at the machine itself the development key, if there is one.

        Such a server listens on loopback only (`graph.refuse_development`). What remains are web
        pages that point a name of theirs at this machine, whose `Host` is that name, and proxies.
        """
        development = self.config.development
        known = development is not None and _from_this_machine(request)
        content = {
            "version": __version__,
            "development_key": development.key if development and known else None,
        }
        return JSONResponse(content, headers={**HEADERS, "cache-control": "no-store"})


def _from_this_machine(request: Request) -> bool:
    client = request.client.host if request.client else None
    proxied = any(name in request.headers for name in PROXY_HEADERS)
    # Absent outside browsers; `none` is a person who typed the address.
    site = request.headers.get("sec-fetch-site", "none")
    return (
        is_loopback(client)
        and is_loopback(request.url.hostname)
        and not proxied
        and site in ("same-origin", "none")
    )


def _reply(request: Request, file: StaticFile) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)
