"""Draft tokens to be verified: what a guest may draft, and the command that does it."""

from __future__ import annotations

import numpy as np

from pieray.arrays import U32
from pieray.errors import InvalidRequest
from pieray.host.device.commands import Command, Queue, wire_ticket
from pieray.messages import Message, Sampler, Verify
from pieray.pages.lineage import Lineage
from pieray.pages.prepared import Prepared
from pieray.pages.space import PageSpace

MAX_DRAFTS = 256
"""Drafts of one pass: each takes a row of logits."""


def check_tree(num_drafts: int, parents: U32) -> int:
    """Depth of the deepest draft, 0 without any; `parents` empty: a chain.

    Raises InvalidRequest for too many drafts, and for a parent that is no earlier draft.
    """
    if num_drafts > MAX_DRAFTS:
        raise InvalidRequest(f"a pass verifies at most {MAX_DRAFTS} drafts; given {num_drafts}")
    if len(parents) == 0:
        return num_drafts
    if len(parents) != num_drafts:
        raise InvalidRequest(f"parents: none or one per draft ({num_drafts}); given {len(parents)}")
    depths = [0]
    for draft, parent in enumerate(parents.tolist()):
        if parent > draft:
            raise InvalidRequest(f"the parent of draft {draft} is 0 or 1 + an earlier draft; given {parent}")
        depths.append(depths[parent] + 1)
    return max(depths)


class VerifyPass(Command):
    """A pass over tokens and drafts.  Its slots count as written once it is known which drafts were accepted."""

    writes_behind_copies = True
    __slots__ = ("adapter", "drafts", "kv_len", "lineage", "pages", "parents", "sampler", "tokens", "visible")

    def __init__(
        self,
        ticket: int,
        queue: Queue,
        prepared: Prepared,
        *,
        pages: PageSpace,
        lineage: Lineage,
        kv_len: int,
        tokens: U32,
        drafts: U32,
        parents: U32,
        sampler: Sampler,
        adapter: int,
        visible: bytes,
    ) -> None:
        super().__init__(ticket, queue, prepared)
        self.pages = pages
        self.lineage = lineage
        self.kv_len = kv_len
        self.tokens = tokens
        self.drafts = drafts
        self.parents = parents
        self.sampler = sampler
        self.adapter = adapter
        self.visible = visible

    @property
    def num_computed(self) -> int:  # type: ignore[override]
        return len(self.tokens) + len(self.drafts)

    def message(self, inferlet: int) -> Message:
        return Verify(
            wire_ticket(inferlet, self.ticket),
            inferlet,
            self.queue.handle,
            self.queue.priority,
            self.prepared.pages.tobytes(),
            self.kv_len,
            self.tokens.tobytes(),
            self.drafts.tobytes(),
            self.parents.tobytes(),
            self.sampler,
            self.adapter,
            self.visible,
        )

    def settled(self, result: object) -> object:
        """The answer: the sampled tokens, of which all but the last are accepted drafts; or an error."""
        if isinstance(result, bytes):
            self._keep(result)
        return result

    def _keep(self, result: bytes) -> None:
        written = np.concatenate((self.tokens, np.frombuffer(result, "<u4")[:-1]))
        if self.pages.stager.keep_written(self.prepared, len(written)):
            self.lineage.add_forward(
                self.prepared.frames, self.kv_len, written.tobytes(), visible=self.visible, adapter=self.adapter
            )
        else:
            self.lineage.give_up()
