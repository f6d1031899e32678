"""How two ends prove to each other that they know the engine's token, without sending it.

    listener -> peer    greeting: MAGIC, server nonce (32 bytes)
    peer -> listener    client nonce (32), HMAC(token, "peer", nonces, hello), hello frame
    listener -> peer    HMAC(token, "listener", nonces, frame), frame of Welcome or Failed

HMAC-SHA256; both nonces are fresh, so nothing recorded is of use later.  The proof is checked before a
byte of the hello is parsed.  No input or output: sockets, Ray calls and threads all use this.  What
follows the handshake is neither encrypted nor signed: as for Ray itself, the network must be trusted.
"""

from __future__ import annotations

import hmac
import os

from pieray.errors import ConfigError, Denied, PeerLost, PierayError, ProtocolError, error_from
from pieray.messages import Failed, Hello, Message, Welcome, decode, encode
from pieray.transport.base import Endpoint

MAGIC = b"pieray1\n"
NONCE = PROOF = 32
GREETING_BYTES = len(MAGIC) + NONCE
MAX_HANDSHAKE_BYTES = 4096


def _proof(token: str, side: bytes, nonces: bytes, frame: bytes) -> bytes:
    return hmac.digest(token.encode(), side + nonces + frame, "sha256")


def check_token(token: str) -> None:
    """Raises ConfigError for a token that protects nothing."""
    if not token:
        raise ConfigError("the engine's token is empty: give a long random one, as secrets.token_hex(32) makes it")


class ServerHandshake:
    """The listener's side of one handshake; of no use after one `accept`."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._nonces = os.urandom(NONCE)
        self._is_used = False

    @property
    def greeting(self) -> bytes:
        """What the peer must see first."""
        return MAGIC + self._nonces[:NONCE]

    def accept(self, answer: bytes) -> Hello:
        """The Hello of a peer that knows the token.  Raises Denied or ProtocolError."""
        if self._is_used:
            raise Denied("this handshake was used already")
        self._is_used = True
        if not NONCE + PROOF < len(answer) <= MAX_HANDSHAKE_BYTES:
            raise ProtocolError(
                f"a handshake answer has {NONCE + PROOF + 1} to {MAX_HANDSHAKE_BYTES} bytes; {len(answer)} came"
            )
        nonce, proof, frame = answer[:NONCE], answer[NONCE : NONCE + PROOF], answer[NONCE + PROOF :]
        self._nonces += nonce
        if not hmac.compare_digest(proof, _proof(self._token, b"peer", self._nonces, frame)):
            raise Denied("the peer does not know the engine's token")
        messages = decode(frame)
        if len(messages) != 1 or not isinstance(messages[0], Hello):
            raise ProtocolError(f"a connection opens with one Hello; {messages!r} came")
        return messages[0]

    def welcome(self, welcome: Welcome) -> bytes:
        """The last word to a peer that was accepted."""
        return self._signed(welcome)

    def refusal(self, error: PierayError) -> bytes:
        """The last word to a peer that was not."""
        return self._signed(Failed(0, error.code, error.message))

    def _signed(self, message: Message) -> bytes:
        frame = encode([message])
        return _proof(self._token, b"listener", self._nonces, frame) + frame


class ClientHandshake:
    """The connecting side of one handshake."""

    def __init__(self, token: str, *, role: str, peer_id: str) -> None:
        self._token = token
        self._hello = encode([Hello(role, peer_id)])
        if len(self._hello) > MAX_HANDSHAKE_BYTES - NONCE - PROOF:
            raise ConfigError(f"role and peer_id take {len(self._hello)} bytes; a handshake has {MAX_HANDSHAKE_BYTES}")
        self._nonces = b""

    def answer(self, greeting: bytes) -> bytes:
        """What to send to a listener that greets like that.  Raises ProtocolError if it is none of ours."""
        if len(greeting) != GREETING_BYTES or not greeting.startswith(MAGIC):
            raise ProtocolError(f"no pieray listener: it greets with {greeting[:16]!r} instead of {MAGIC!r}")
        nonce = os.urandom(NONCE)
        self._nonces = greeting[len(MAGIC) :] + nonce
        return nonce + _proof(self._token, b"peer", self._nonces, self._hello) + self._hello

    def finish(self, last: bytes, endpoint: Endpoint) -> Welcome:
        """The listener's Welcome.

        Raises Denied if it refuses us or does not know the token itself, ProtocolError for another schema,
        PeerLost if it is not (or no longer) the process that the endpoint was made by.
        """
        proof, frame = last[:PROOF], last[PROOF:]
        messages = decode(frame)
        if len(messages) == 1 and isinstance(messages[0], Failed):
            raise error_from(messages[0].code, messages[0].message)
        if not hmac.compare_digest(proof, _proof(self._token, b"listener", self._nonces, frame)):
            raise Denied("the listener does not know the engine's token")
        if len(messages) != 1 or not isinstance(messages[0], Welcome):
            raise ProtocolError(f"a handshake ends with Welcome or Failed; {messages!r} came")
        _check_identity(messages[0], endpoint)
        return messages[0]


def _check_identity(welcome: Welcome, endpoint: Endpoint) -> None:
    if (welcome.peer_id, welcome.incarnation) != (endpoint.peer_id, endpoint.incarnation):
        raise PeerLost(
            f"the endpoint of {endpoint.peer_id} (incarnation {endpoint.incarnation}) is stale: "
            f"{welcome.peer_id} (incarnation {welcome.incarnation}) answers there; ask for the new one"
        )
