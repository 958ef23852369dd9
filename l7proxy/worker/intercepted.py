"""Connections that were going elsewhere: where to, and which of them would go round in circles.

Two kinds come back to where they came from, and are reset at once:

- one that is to l7proxy itself. Nobody intercepted it: somebody has connected to the listener, and
  what was passed through to where it was going would come here again;
- one that l7proxy's own user has made. The rules leave that user alone, or everything that a worker
  dials would come back to it; where they do not, this is such a dial.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from l7proxy.errors import Reason
from l7proxy.model import Address, Transparent, Way
from l7proxy.net.interception import OwnAddresses, original_destination
from l7proxy.net.sockdiag import SockDiag
from l7proxy.telemetry.log import event

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

log = logging.getLogger(__name__)

_OWN_LISTENER = "own-listener"
_OWN_USER = "own-user"
_REMEDY = {
    _OWN_LISTENER: "connect to where the application is, l7proxy gets it by itself",
    _OWN_USER: "let `l7proxy sidecar enable --user` name whom workers run as",
}


class Intercepted:
    """What a transparent listener finds out about its connections."""

    def __init__(self, transparent: Transparent, own: OwnAddresses) -> None:
        """`own` are the addresses that l7proxy listens on."""
        self.keeps_client = transparent.keep_client_address
        self._mode = transparent.mode
        self._own = own
        self._told: set[str] = set()
        self._diag: SockDiag | None = None
        self._user = os.geteuid()
        if transparent.direction is not Way.INBOUND:  # those are from elsewhere, as the rules say
            try:
                self._diag = SockDiag(seconds=1.0)
            except OSError as error:
                self._blind(error)

    def destination(self, connection: Connection) -> Address | None:
        """Where it was going; None when it was reset."""
        try:
            found = original_destination(connection.client, self._mode)
            client = connection.client.getpeername()
        except OSError:
            connection.abort(Reason.CLIENT_RESET)
            return None
        if found in self._own:
            self._refuse(connection, _OWN_LISTENER, found)
            return None
        if self._diag is not None:
            near = Address(connection.client_host, client[1])
            try:
                if self._diag.owner(near, found) == self._user:
                    self._refuse(connection, _OWN_USER, found)
                    return None
            except OSError as error:
                self._diag.close()
                self._diag = None
                self._blind(error)
        return found

    def _refuse(self, connection: Connection, rule: str, destination: Address) -> None:
        connection.record.rule, connection.record.destination = rule, str(destination)
        if rule not in self._told:  # the access log has each, and there may be many
            self._told.add(rule)
            log.warning(
                event(
                    "loop refused",
                    listener=connection.listener.name,
                    rule=rule,
                    client=connection.record.client,
                    destination=str(destination),
                    remedy=_REMEDY[rule],
                )
            )
        connection.abort(Reason.LOOP)

    def _blind(self, error: OSError) -> None:
        log.warning(
            event(
                "cannot tell whose connections are, loops are bounded by limits alone",
                why=(error.strerror or str(error)).lower(),
            )
        )
