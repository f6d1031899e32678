"""Every message that crosses a process, by who talks to whom, and the one frame format."""

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
from pieray.messages.client import Attach, Event, Kill, Launch, SendText
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
    "SAMPLE",
    "SAMPLE_WITH",
    "SCHEMA",
    "Attach",
    "CancelInferlet",
    "CloseLease",
    "Completed",
    "CopyTokens",
    "Event",
    "ExtendPlan",
    "Failed",
    "Forward",
    "Hello",
    "Kill",
    "Launch",
    "LeasePages",
    "Message",
    "Output",
    "PeerFenced",
    "PlanTokens",
    "ReclaimSpare",
    "ReleasePages",
    "SendText",
    "StartPlan",
    "StopPlan",
    "Welcome",
    "decode",
    "encode",
]
