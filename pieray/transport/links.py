"""`serve` and `connect`: the one place that knows all transports."""

from __future__ import annotations

from pieray.errors import ConfigError
from pieray.transport.base import Connection, Endpoint, Listener, Service
from pieray.transport.handshake import check_token
from pieray.transport.inproc import InprocListener, connect_inproc
from pieray.transport.options import SocketOptions
from pieray.transport.socket_client import connect_socket
from pieray.transport.socket_server import SocketListener

KINDS = ("socket", "ray", "inproc")


def serve(
    service: Service,
    *,
    peer_id: str,
    incarnation: int,
    token: str,
    kind: str = "socket",
    host: str = "127.0.0.1",
    port: int = 0,
    runtime_dir: str | None = None,
    options: SocketOptions | None = None,
) -> Listener:
    """Let peers connect to the service.

    `host` and `port` are of TCP: "" opens no port, 0 takes any; `runtime_dir` holds the unix socket
    (default: a private directory in the system's one for temporary files).  For kind "ray" see
    `pieray.transport.ray_server.RayListener`: it needs an actor to live in.
    Raises ConfigError, EngineError.
    """
    if kind == "inproc":
        return InprocListener(service, peer_id=peer_id, incarnation=incarnation, token=token)
    if kind != "socket":
        raise ConfigError(f"no transport {kind!r} to serve by itself; there are 'socket' and 'inproc'")
    return SocketListener(
        service,
        peer_id=peer_id,
        incarnation=incarnation,
        token=token,
        host=host,
        port=port,
        runtime_dir=runtime_dir,
        options=options or SocketOptions(),
    )


def connect(
    endpoint: Endpoint,
    service: Service,
    *,
    role: str,
    peer_id: str,
    token: str,
    timeout_s: float = 10.0,
    options: SocketOptions | None = None,
) -> Connection:
    """Connect to the listener behind the endpoint; `peer_id` is ours, and unique for the life of the process.

    Heartbeats are as the listener says, unless `options` says otherwise.

    Raises Denied (wrong token, on either end), ProtocolError (another schema, or no pieray listener),
    DeadlineExceeded after timeout_s, PeerLost (nobody is there, or the endpoint is of an earlier
    incarnation: ask for the new one).
    """
    check_token(token)
    if endpoint.kind == "socket":
        return connect_socket(
            endpoint, service, role=role, peer_id=peer_id, token=token, timeout_s=timeout_s, options=options
        )
    if endpoint.kind == "inproc":
        return connect_inproc(endpoint, service, role=role, peer_id=peer_id, token=token)
    if endpoint.kind == "ray":
        from pieray.transport.ray_client import connect_ray  # here: Ray takes half a second to import

        return connect_ray(endpoint, service, role=role, peer_id=peer_id, token=token, timeout_s=timeout_s)
    raise ConfigError(f"no transport {endpoint.kind!r}; there are {', '.join(KINDS)}")
