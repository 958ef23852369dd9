"""What a backend gets of a request, as a listener with these rules writes it."""

from __future__ import annotations

from l7proxy.filters import Rewriting
from l7proxy.forwarded import ForwardedWriter, Hop
from l7proxy.head import Head, serialise
from l7proxy.model import FieldPolicy, ForwardedFields

SHORT = ForwardedFields(x_forwarded_proto=FieldPolicy.REMOVE, x_forwarded_host=FieldPolicy.REMOVE)


def written(
    head: Head,
    client: str = "192.0.2.7",
    *,
    fields: ForwardedFields = SHORT,
    trusted: bool = False,
    rewriting: Rewriting | None = None,
) -> bytes:
    """The head on its way to a backend."""
    hop = Hop(client, client, trusted, "http", 80)
    forwarded = ForwardedWriter(fields).fields(
        hop, head.headers, authority=head.authority, version=head.version
    )
    return serialise(head, forwarded, trusted=trusted, rewriting=rewriting)
