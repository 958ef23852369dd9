"""The admin server: what an operator asks of this l7proxy, and has it do.

    server    sockets and HTTP: heads, bodies and slow clients are bounded
    guard     who may ask: the token, and what a browser must not be made to do
    router    which path and method is whose
    message   requests, answers, problems (RFC 9457)
    page/     the status page at `/`

It runs in the supervisor, which is privileged, so it reads little and believes none of it. What is
behind the paths is added by `operations` and by whoever else has something to tell:

    router.add("GET", "/metrics", handler)      # async def handler(request: Request) -> Answer

`openapi.json` tells all of it, and is served; a test holds it against the router and the answers.
"""

from __future__ import annotations

from l7proxy.admin.guard import Guard, Token
from l7proxy.admin.message import Answer, Problem, Request, description, json_answer
from l7proxy.admin.page import add_page
from l7proxy.admin.router import Router
from l7proxy.admin.server import Admin

__all__ = [
    "Admin",
    "Answer",
    "Guard",
    "Problem",
    "Request",
    "Router",
    "Token",
    "add_page",
    "description",
    "json_answer",
]
