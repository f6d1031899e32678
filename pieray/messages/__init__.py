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
from pieray.messages.client import Attach, Event, Kill, Launch, SendText
from pieray.messages.frame import MAX_FRAME_BYTES, SCHEMA, Message, decode, encode
from pieray.messages.leases import (
    CloseLease,
    ExportPages,
    ImportPages,
    LeasePages,
    ListExports,
    PeerFenced,
    ReclaimSpare,
    ReleasePages,
    Unexport,
)
from pieray.messages.opening import Completed, Failed, Hello, Welcome

__all__ = [
    "DISTRIBUTION",
    "LOGITS",
    "LOGPROBS",
    "MAX_FRAME_BYTES",
    "SAMPLE",
    "SCHEMA",
    "Attach",
    "CancelInferlet",
    "CloseLease",
    "Completed",
    "CopyTokens",
    "Event",
    "ExportPages",
    "Failed",
    "Forward",
    "Hello",
    "ImportPages",
    "Kill",
    "Launch",
    "LeasePages",
    "ListExports",
    "Message",
    "Output",
    "PeerFenced",
    "ReclaimSpare",
    "ReleasePages",
    "SendText",
    "Unexport",
    "Welcome",
    "decode",
    "encode",
]
