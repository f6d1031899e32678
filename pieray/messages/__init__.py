"""Every message that crosses a process, by who talks to whom, and the one frame format."""

from pieray.messages.adapters import PRIVATE, LoadAdapter, UnloadAdapter
from pieray.messages.batcher import (
    DISTRIBUTION,
    ENTROPY,
    HIDDEN,
    LOGITS,
    LOGPROBS,
    SAMPLE,
    SAMPLE_WITH,
    CancelInferlet,
    CopyTokens,
    Forward,
    Output,
)
from pieray.messages.children import Bind
from pieray.messages.client import Attach, Event, Install, Kill, Launch, SendFile, SendText
from pieray.messages.client_calls import CancelCall, ClientAnswer, ClientCall, ServeTools
from pieray.messages.frame import MAX_FRAME_BYTES, SCHEMA, Message, decode, encode
from pieray.messages.leases import CloseLease, LeasePages, PeerFenced, ReclaimSpare, ReleasePages
from pieray.messages.opening import Completed, Failed, Hello, Welcome

__all__ = [
    "DISTRIBUTION",
    "ENTROPY",
    "HIDDEN",
    "LOGITS",
    "LOGPROBS",
    "MAX_FRAME_BYTES",
    "PRIVATE",
    "SAMPLE",
    "SAMPLE_WITH",
    "SCHEMA",
    "Attach",
    "Bind",
    "CancelCall",
    "CancelInferlet",
    "ClientAnswer",
    "ClientCall",
    "CloseLease",
    "Completed",
    "CopyTokens",
    "Event",
    "Failed",
    "Forward",
    "Hello",
    "Install",
    "Kill",
    "Launch",
    "LeasePages",
    "LoadAdapter",
    "Message",
    "Output",
    "PeerFenced",
    "ReclaimSpare",
    "ReleasePages",
    "SendFile",
    "SendText",
    "ServeTools",
    "UnloadAdapter",
    "Welcome",
    "decode",
    "encode",
]
