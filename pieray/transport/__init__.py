"""Messages between processes: one contract (`Connection`, `Service`), three ways to carry it.

`socket`   a unix socket on one node, authenticated TCP across nodes; what runs in production
`ray`      coalesced plain Ray actor calls: the fallback where no port may be opened
`inproc`   threads of one process: tests and single-process engines

    listener = serve(service, peer_id="batcher-0", incarnation=1, token=token)
    connection = connect(listener.endpoint, other, role="inferlets", peer_id="host-3", token=token)

Importing this package imports neither Ray nor torch.
"""

from pieray.transport.base import Connection, Endpoint, Listener, Service
from pieray.transport.calls import PendingCalls
from pieray.transport.links import connect, serve
from pieray.transport.options import SocketOptions

__all__ = ["Connection", "Endpoint", "Listener", "PendingCalls", "Service", "SocketOptions", "connect", "serve"]
