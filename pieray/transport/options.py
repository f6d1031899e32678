"""The numbers of the socket transport that an operator may want to change."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """Both ends may differ, as long as each `lost_after_s` is well above the other's `heartbeat_s`."""

    heartbeat_s: float = 2.0  # TCP only: an idle connection carries one empty frame this often
    lost_after_s: float = 10.0  # TCP only: a peer silent for so long is gone (host vanished, process frozen)
    handshake_s: float = 5.0  # a peer that has not authenticated by then is dropped
    max_half_open: int = 128  # peers that may be authenticating at once on each listening socket: see `Door`

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_s <= self.lost_after_s / 2:
            raise ConfigError(
                f"heartbeat_s must be above 0 and at most half of lost_after_s ({self.lost_after_s}); "
                f"{self.heartbeat_s} was given"
            )
        if self.handshake_s <= 0 or self.max_half_open < 1:
            raise ConfigError(
                f"handshake_s must be above 0 and max_half_open at least 1; "
                f"{self.handshake_s} and {self.max_half_open} were given"
            )
