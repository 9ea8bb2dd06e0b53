"""Who may see and do what: authorization, protection against forged requests, security headers.

A forged request is one that another site makes in the browser of somebody who is authorized. It
cannot read the token in the cookie, so it cannot send it in the form; and the browser says where it
comes from.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Mapping
from hmac import compare_digest
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from .options import DashboardOptions

FIELD: Final = "token"
"""The name of the form field with the token."""

COOKIE: Final = "proletarian_token"

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""The headers of every page."""


class DeniedError(Exception):
    """The request is refused; the message says why."""


async def require_access(request: Request, options: DashboardOptions) -> None:
    """Check that the visitor may see the dashboard.

    :raises DeniedError: if not.
    """
    if options.authorize is not None:
        allowed = options.authorize(request)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if allowed is not True:
            msg = "You may not see this dashboard."
            raise DeniedError(msg)
        return
    if not options.insecure_local:
        msg = (
            "Nobody may see this dashboard yet: it has no authorize function. Pass "
            "authorize=function, which gets the request and returns True for those who may."
        )
        raise DeniedError(msg)
    # The name, too: a page of another site may resolve its own name to this address.
    client = "" if request.client is None else request.client.host
    if not (is_loopback(client) and is_loopback(request.url.hostname or "")):
        msg = "This dashboard is open to the machine that it runs on only."
        raise DeniedError(msg)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is that of the machine itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def token_of(request: Request) -> str:
    """Return the token of the visitor, a new one if there is none yet."""
    known = request.cookies.get(COOKIE) or request.scope.get(COOKIE)
    token: str = known or secrets.token_urlsafe(24)
    request.scope[COOKIE] = token
    return token


def set_token(request: Request, response: Response) -> None:
    """Let the browser keep the token."""
    if not request.cookies.get(COOKIE):
        path = request.scope.get("root_path", "") or "/"
        response.set_cookie(
            COOKIE,
            token_of(request),
            path=path,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )


def require_own_form(request: Request, form: Mapping[str, list[str]]) -> None:
    """Check that a request that changes something comes from a form of the dashboard.

    :raises DeniedError: if not.
    """
    expected = request.cookies.get(COOKIE, "")
    given = (form.get(FIELD) or [""])[0]
    if expected and compare_digest(expected.encode(), given.encode()) and _is_same_site(request):
        return
    msg = "The form is not one of this site, or it is too old. Go back, reload the page, try again."
    raise DeniedError(msg)


def _is_same_site(request: Request) -> bool:
    fetched_from = request.headers.get("sec-fetch-site")
    if fetched_from is not None:
        return fetched_from == "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
