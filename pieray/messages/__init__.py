"""Every message that crosses a process, by who talks to whom, and the one frame format."""

from pieray.messages.batcher import (
    DISTRIBUTION,
    LOGITS,
    LOGPROBS,
    SAMPLE,
    CancelInferlet,
    CopyTokens,
    Forward,
    Output,
)
from pieray.messages.client import (
    Attach,
    Event,
    Install,
    Kill,
    Launch,
    SendFile,
    SendText,
    file_part,
    read_file_part,
)
from pieray.messages.client_calls import CancelCall, ClientAnswer, ClientCall, ServeTools
from pieray.messages.frame import MAX_FRAME_BYTES, SCHEMA, Message, decode, encode
from pieray.messages.leases import CloseLease, LeasePages, PeerFenced, ReclaimSpare, ReleasePages
from pieray.messages.opening import Completed, Failed, Hello, Welcome

__all__ = [
    "DISTRIBUTION",
    "LOGITS",
    "LOGPROBS",
    "MAX_FRAME_BYTES",
    "SAMPLE",
    "SCHEMA",
    "Attach",
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
    "Message",
    "Output",
    "PeerFenced",
    "ReclaimSpare",
    "ReleasePages",
    "SendFile",
    "SendText",
    "ServeTools",
    "Welcome",
    "decode",
    "encode",
    "file_part",
    "read_file_part",
]
