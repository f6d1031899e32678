"""The handlers of the WIT: `GuestHandlers` answers one inferlet, with an object per interface.

`kv.alloc` is `handlers.kv.alloc`.  A method raises a PierayError to give the guest a typed error.  Nothing here
blocks: the single blocking point, `tickets.wait`, is the wasm host's, built on `tickets.flush` and `tickets.ready`.
"""

from pieray.host.handlers.all import GuestHandlers

__all__ = ["GuestHandlers"]
