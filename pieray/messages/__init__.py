"""Every message that crosses a process, by who talks to whom, and the one frame format.

A name is imported when it is first used, an unknown kind in a frame brings all: to make the classes of all peers is a
large part of a client's start, and it needs few of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pieray.messages.adapters import PRIVATE, LoadAdapter, UnloadAdapter
    from pieray.messages.batcher import (
        CancelInferlet,
        CopyTokens,
        DecodePasses,
        DropSwapped,
        EmbedImage,
        EmbedTokens,
        Forward,
        OpenInferlet,
        ReadPages,
        Sampled,
        SwapIn,
        SwapOut,
        Verify,
        WritePages,
    )
    from pieray.messages.broker import (
        Broadcast,
        Credit,
        Next,
        Pull,
        Push,
        Settle,
        StoreDelete,
        StoreGet,
        StoreNames,
        StorePut,
        StorePutIf,
        Subscribe,
        Unsubscribe,
        Withdraw,
    )
    from pieray.messages.children import Bind
    from pieray.messages.client import (
        AskUsage,
        Attach,
        AwaitStart,
        Event,
        Install,
        Kill,
        Launch,
        LaunchHere,
        SendFile,
        SendText,
        file_part,
        read_file_part,
    )
    from pieray.messages.client_calls import CancelCall, ClientAnswer, ClientCall, ServeTools
    from pieray.messages.controller import Ask
    from pieray.messages.frame import MAX_FRAME_BYTES, SCHEMA, Message, decode, decode_one, encode, size_of
    from pieray.messages.leases import (
        CloseLease,
        ExportPages,
        FencePeer,
        GroupNews,
        ImportPages,
        IndexPages,
        LeasePages,
        ListExports,
        OpenLease,
        PeerFenced,
        Preempt,
        Preempted,
        Reclaimed,
        ReclaimSpare,
        ReleasePages,
        Unexport,
    )
    from pieray.messages.opening import Completed, Failed, Hello, Welcome
    from pieray.messages.outputs import GREEDY, Distribution, Entropy, Hidden, Logits, Logprobs, Output, Sample, Sampler
    from pieray.messages.plans import ExtendPlan, PlanTokens, RunEnded, RunTokens, StartPlan, StopPlan
    from pieray.messages.programs import LoadProgram, ReadProgram, UnloadProgram

__all__ = [
    "GREEDY",
    "MAX_FRAME_BYTES",
    "PRIVATE",
    "SCHEMA",
    "Ask",
    "AskUsage",
    "Attach",
    "AwaitStart",
    "Bind",
    "Broadcast",
    "CancelCall",
    "CancelInferlet",
    "ClientAnswer",
    "ClientCall",
    "CloseLease",
    "Completed",
    "CopyTokens",
    "Credit",
    "DecodePasses",
    "Distribution",
    "DropSwapped",
    "EmbedImage",
    "EmbedTokens",
    "Entropy",
    "Event",
    "ExportPages",
    "ExtendPlan",
    "Failed",
    "FencePeer",
    "Forward",
    "GroupNews",
    "Hello",
    "Hidden",
    "ImportPages",
    "IndexPages",
    "Install",
    "Kill",
    "Launch",
    "LaunchHere",
    "LeasePages",
    "ListExports",
    "LoadAdapter",
    "LoadProgram",
    "Logits",
    "Logprobs",
    "Message",
    "Next",
    "OpenInferlet",
    "OpenLease",
    "Output",
    "PeerFenced",
    "PlanTokens",
    "Preempt",
    "Preempted",
    "Pull",
    "Push",
    "ReadPages",
    "ReadProgram",
    "ReclaimSpare",
    "Reclaimed",
    "ReleasePages",
    "RunEnded",
    "RunTokens",
    "Sample",
    "Sampled",
    "Sampler",
    "SendFile",
    "SendText",
    "ServeTools",
    "Settle",
    "StartPlan",
    "StopPlan",
    "StoreDelete",
    "StoreGet",
    "StoreNames",
    "StorePut",
    "StorePutIf",
    "Subscribe",
    "SwapIn",
    "SwapOut",
    "Unexport",
    "UnloadAdapter",
    "UnloadProgram",
    "Unsubscribe",
    "Verify",
    "Welcome",
    "Withdraw",
    "WritePages",
    "decode",
    "decode_one",
    "encode",
    "file_part",
    "read_file_part",
    "size_of",
]

#: Where names are looked for, first those that every client needs, last those that need numpy.
_MODULES = (
    "frame",
    "opening",
    "client",
    "client_calls",
    "children",
    "controller",
    "leases",
    "broker",
    "adapters",
    "outputs",
    "batcher",
    "plans",
    "programs",
)


def __getattr__(name: str) -> Any:
    """A name of `__all__` (PEP 562)."""
    if name in __all__:
        for module in map(_load, _MODULES):
            if name in vars(module):
                globals()[name] = vars(module)[name]
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_all() -> None:
    """Import every module, so that all kinds are registered."""
    for module in _MODULES:
        _load(module)


def _load(module: str) -> Any:
    return importlib.import_module(f"{__name__}.{module}")
