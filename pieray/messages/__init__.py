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
    EmbedTokens,
    Forward,
    Output,
    Verify,
)
from pieray.messages.client import Attach, Event, Install, Kill, Launch, SendText
from pieray.messages.frame import MAX_FRAME_BYTES, SCHEMA, Message, decode, encode
from pieray.messages.leases import CloseLease, LeasePages, PeerFenced, ReclaimSpare, ReleasePages
from pieray.messages.opening import Completed, Failed, Hello, Welcome
from pieray.messages.plans import ExtendPlan, PlanTokens, StartPlan, StopPlan

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
    "CancelInferlet",
    "CloseLease",
    "Completed",
    "CopyTokens",
    "EmbedTokens",
    "Event",
    "ExtendPlan",
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
    "PlanTokens",
    "ReclaimSpare",
    "ReleasePages",
    "SendText",
    "StartPlan",
    "StopPlan",
    "UnloadAdapter",
    "Verify",
    "Welcome",
    "decode",
    "encode",
]
