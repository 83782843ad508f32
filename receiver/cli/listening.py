"""The sockets to listen on, bound before anything else happens, so that a port in use is said at once."""

import socket
from contextlib import ExitStack

from receiver.errors import ReceiverError


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for every address a host name stands for, all on one port; port 0 takes a free one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with ExitStack() as undo:
            bound: list[socket.socket] = []
            for family, _, _, _, address in dict.fromkeys(found):
                listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address[0], port, *address[2:]))
                port = port or listener.getsockname()[1]
                bound.append(listener)
            undo.pop_all()
            return bound
    except OSError as error:
        raise ReceiverError(f"cannot listen on {host} port {port}: {error.strerror}") from None
