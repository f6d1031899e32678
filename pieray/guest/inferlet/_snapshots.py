"""What a context keeps beyond its life, and what it tells of its memory: exports, masks, hints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import _convert, kv
from ._chat import Chat, Setting
from ._ranges import Ranges
from ._sequence import Placed
from .embeds import Embedding
from .errors import InvalidRequest

if TYPE_CHECKING:
    from typing import Self

    from ._sequence import KvSequence
    from .adapters import Adapter

FORMAT = 3


class Snapshots:
    """The part of `Context` that saves and opens it, masks its tokens and plans its memory.

    A snapshot is an export of the context's pages whose meta holds tokens, messages and masks: opening it computes
    nothing.
    """

    model: str
    sequence: KvSequence
    _tokens: list[int]
    _marks: list[tuple[int, Chat]]
    _setting: Setting

    if TYPE_CHECKING:

        def __init__(self, text: str = "", *, model: str = "", adapter: Adapter | None = None) -> None: ...

        async def flush(self) -> None: ...

        def close(self) -> None: ...

    # -- snapshots

    async def save(
        self, name: str, *, ttl: float = 0, pinned: bool = False, access: str = "owner", replace: bool = True
    ) -> None:
        """Keep the context as it is now under a name, for `Context.open` in this or another inferlet.

        `ttl`: seconds, 0: for as long as the engine lives.  It may be dropped when memory is short and nobody has it
        open, unless it is `pinned`.  `access`: "owner" (your user), "tenant" or "public".
        """
        self.sequence.check_open()
        if not self._tokens:
            raise InvalidRequest("the context is empty: append something before it is saved")
        self.sequence.release()
        await self.flush()
        if not self.sequence.kv_len:
            await self.sequence.prefill(self._tokens)
        sequence = self.sequence
        meta = json.dumps(self._meta(), separators=(",", ":"))
        options: dict[str, Any] = {"ttl": ttl, "pinned": pinned, "access": access, "replace": replace}
        await kv.export_pages(name, sequence.live_pages(), sequence.num_slots, meta=meta, **options)

    @classmethod
    async def open(cls, name: str, *, model: str = "", adapter: Adapter | None = None) -> Self:
        """A fork of a snapshot on that model: yours by that name, else the tenant's, else a public one.

        Raises NotFound, Evicted, and InvalidRequest if it is no snapshot, or one made with another adapter: one of
        other weights or scaling, whatever its name.
        """
        return (await cls._opened(name, model, adapter))[0]

    @classmethod
    async def take(cls, name: str, *, model: str = "", adapter: Adapter | None = None) -> Self:
        """Open a snapshot of yours and delete it."""
        context, access = await cls._opened(name, model, adapter)
        try:
            await kv.unexport(name, access, model)
        except BaseException:
            context.close()
            raise
        return context

    @staticmethod
    async def delete(name: str, access: str = "owner", *, model: str = "") -> None:
        """Delete a snapshot of yours; contexts opened from it stay."""
        await kv.unexport(name, access, model)

    @staticmethod
    async def names(prefix: str = "", *, model: str = "") -> list[str]:
        """Names that `open` finds, in order."""
        return sorted({export.name for export in await kv.list_exports(prefix, model)})

    def _meta(self) -> dict[str, Any]:
        adapter = self.sequence.adapter
        return {
            "context": FORMAT,
            "adapter": [adapter.name, adapter.digest] if adapter is not None else None,
            "tokens": self._tokens,
            "tools": list(self._setting.tools),
            "template": dict(self._setting.arguments),
            "now": self._setting.now,
            "marks": [[position, asdict(chat)] for position, chat in self._marks],
            "hidden": list(self.sequence.hidden),
            "dropped": list(self.sequence.dropped),
            "images": [[one.start, one.end] for one in self.sequence.images],
        }

    @classmethod
    async def _opened(cls, name: str, model: str, adapter: Adapter | None) -> tuple[Self, str]:
        found = await kv.import_pages(name, model)
        try:
            return cls._restored(found, model, adapter), found.access
        except (ValueError, TypeError, LookupError, AttributeError):
            raise InvalidRequest(f"export {name!r} is no snapshot of a context; kv.import_pages imports it") from None
        finally:
            if found.pages:  # not handed over to a context
                kv.free(found.pages)

    @classmethod
    def _restored(cls, found: kv.Imported, model: str, adapter: Adapter | None) -> Self:
        meta = json.loads(found.meta)
        tokens = _convert.u32s("tokens", meta["tokens"])
        tools = tuple(dict(tool) for tool in meta["tools"])
        setting = Setting(model, tools, dict(meta["template"]), int(meta["now"]))
        marks = [(int(at), _chat_of(said)) for at, said in meta["marks"]]
        hidden = Ranges((int(start), int(end)) for start, end in meta["hidden"])
        dropped = Ranges((int(start), int(end)) for start, end in meta["dropped"])
        if meta["context"] != FORMAT or len(tokens) < found.num_tokens:
            raise ValueError
        made_with, given = meta["adapter"], [adapter.name, adapter.digest] if adapter is not None else None
        if (made_with and str(made_with[1])) != (given and given[1]):
            raise InvalidRequest(
                f"this snapshot was made with {_told(made_with)}, and is opened with {_told(given)}: "
                "open it with the same weights and scaling"
            )
        context = cls(model=setting.model, adapter=adapter)
        context._setting, context._tokens, context._marks = setting, tokens, marks
        context.sequence.images = [
            Placed(int(start), int(end), Embedding(0, int(end) - int(start))) for start, end in meta.get("images", [])
        ]
        context.sequence.adopt(found.pages, found.num_tokens, dropped)
        found.pages.clear()
        context._mask_all(hidden)
        return context

    # -- masks

    def mask(self, start: int, end: int, visible: bool = False) -> None:
        """Hide the tokens [start, end) from what comes later, or show them again.

        Positions stay what they are; their KV stays in memory.  Forks and snapshots inherit it.
        """
        self.sequence.check_open()
        _convert.integer("end of a mask", end, 0, len(self._tokens))
        _convert.integer("start of a mask", start, 0, end)
        if _convert.boolean("visible", visible) and (gone := self.sequence.dropped.within(start, end)):
            raise InvalidRequest(f"tokens {gone} were dropped: they cannot be shown again")
        self.sequence.mask(start, end, visible=visible)

    async def drop(self, start: int, end: int) -> None:
        """Hide the tokens [start, end) from what comes later, for good, and give back the pages that hold no others.

        What waits is flushed first.  Positions stay what they are, and `tokens` and `text` still tell them.  To cut a
        long context from the middle, such as all but its first page and the latest pages: a window with a sink.
        Afterwards it generates with a pass per token.  Raises InvalidRequest while a pass runs.
        """
        self.sequence.check_open()
        _convert.integer("end of a drop", end, 0, len(self._tokens))
        _convert.integer("start of a drop", start, 0, end)
        await self.flush()
        self.sequence.drop(start, end)

    def _mask_all(self, ranges: Iterable[tuple[int, int]]) -> None:
        try:
            for start, end in ranges:
                self.mask(start, end)
        except BaseException:
            self.close()
            raise

    # -- memory

    async def reserve(self, num_tokens: int) -> None:
        """Lease memory for `num_tokens` more tokens now.  Raises OutOfPages if there is none in time."""
        count = self._num_pages_for("num_tokens", num_tokens)
        if count > 0:
            await kv.reserve(count, self.model)

    def expect(self, tokens: int) -> None:
        """`tokens` more tokens are to be expected here soon: memory for them is leased ahead, without waiting.

        Never fails for want of memory: what there is not is leased when it is needed.  Others who need it first get
        it, unlike what was reserved.  Raises QuotaExceeded for more than limits.pages allows.
        """
        count = self._num_pages_for("tokens", tokens)
        if count > 0:
            kv.expect(count, self.model)

    def _num_pages_for(self, name: str, num_tokens: int) -> int:
        """That are needed beyond those whose KV is there."""
        self.sequence.check_open()
        _convert.u32(name, num_tokens)
        size = self.sequence.page_size
        return -(-(len(self._tokens) + num_tokens) // size) - -(-self.sequence.kv_len // size)

    def idle(self) -> None:
        """This inferlet will compute nothing for a while: memory leased ahead of need goes back now, and what its pages
        hold may be kept in host memory for as long, if others lack pages.

        It is there again when what is waited for has come.  Waiting for the client, children, HTTP and MCP servers, and
        sleeping for a second and more, say so by themselves, if nothing else is waited for and nothing is reserved.
        """
        self.sequence.check_open()
        kv.idle(self.sequence.live_pages())

    def pin(self) -> None:
        """Keep this inferlet's memory where it is while it waits, until `unpin` or until this context is closed.

        For one that must go on at once when what it waits for has come.  It may still have to give its memory up for
        those who rank higher (priority, deadline, service): see "When memory is short" in docs/inferlets.md.
        """
        self.sequence.pin()

    def unpin(self) -> None:
        """Take `pin` back; a second time does nothing.  Other contexts that are pinned stay so."""
        self.sequence.unpin()


def _told(adapter: Sequence[Any] | None) -> str:
    return f"adapter {str(adapter[0])!r} of digest {str(adapter[1])[:16]}" if adapter else "no adapter"


def _chat_of(meta: dict[str, Any]) -> Chat:
    """A conversation as a snapshot has it.  Raises KeyError or TypeError."""
    known = {name: meta[name] for name in Chat.__dataclass_fields__}
    return Chat(**{**known, "messages": tuple(known["messages"]), "calls": tuple(known["calls"])})
