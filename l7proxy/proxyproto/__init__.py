"""The PROXY protocol, versions 1 and 2: who the client of a connection really is. Pure.

Written from HAProxy's `doc/proxy-protocol.txt`; "the spec" below. In: `HeaderReader` collects one
header from any cut of the input. Out: `encode`.

Some of its rules, and what follows:

- "Implementers should be very careful about not trying to automatically detect whether they have
  to decode the header or not": whoever may send a header is said in the policy, by address. From
  everybody else the same bytes are the client's own.
- "Any sequence which does not exactly match the protocol must be discarded and cause the receiver
  to abort the connection." So what has begun like a header and is none is an error, also where a
  header is optional. No request and no ClientHello begins like one.
- "The receiver must not start to parse an address before the whole address block is received." An
  optional header that stops half-way is waited for until the timeout, then the connection ends.
- "The receiver must also reject incoming connections containing partial protocol headers" is meant
  for single reads; TCP may cut a header anywhere, so here it is collected.
"""

from __future__ import annotations

from l7proxy.proxyproto.reading import MAX_V1, MAX_V2, HeaderReader, Rule
from l7proxy.proxyproto.words import SIGNATURE, Header, Tlv
from l7proxy.proxyproto.writing import encode

__all__ = ["MAX_V1", "MAX_V2", "SIGNATURE", "Header", "HeaderReader", "Rule", "Tlv", "encode"]
