"""Tensor programs inside of a pass: on hidden states, on which pages attention reads, on what was attended to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from pieray.kernels.meta import AttentionMeta
from pieray.models.config import ModelConfig
from pieray.models.kv_pool import KvPool
from pieray.models.tensor_programs import SLICE_BYTES, Compiled, Given, ProgramInstance

SELECTING, STEERING, WATCHING = PASS_STAGES = "pages", "hidden", "attention"


@dataclass(slots=True)
class _Item:
    """One pass in the step: request number `request` of the attention, tokens [first, last) of the batch."""

    request: int
    first: int
    last: int
    pages: torch.Tensor  # int64 [P], in order, those that are used
    kv_len: int  # with the tokens of the pass
    programs: dict[str, list[ProgramInstance]]
    mass: list[torch.Tensor] = field(default_factory=list)  # of each layer, float32 [P]

    def of(self, stage: str, layer: int) -> list[ProgramInstance]:
        return [one for one in self.programs.get(stage, ()) if one.program.runs_in(layer)]


class PassPrograms:
    """Those of one step.  A decoder calls `hidden` in front of a layer, `attention` when the layer has its queries and
    keys, and `finish` in the end."""

    def __init__(
        self,
        programs: Sequence[tuple[int, Sequence[ProgramInstance]]],
        meta: AttentionMeta,
        positions: torch.Tensor,
        pool: KvPool,
        config: ModelConfig,
    ) -> None:
        """`programs`: requests of the step that have some, with those."""
        self._meta = meta
        self._positions = positions
        self._pool = pool
        self._config = config
        self.pending: dict[ProgramInstance, list[torch.Tensor]] = {}
        """Next states, once the step has gone well."""
        self._items = []
        starts, page_starts, kv_lens = (one.tolist() for one in (meta.qo_indptr, meta.page_indptr, meta.kv_lens))
        for request, given in programs:
            by_stage: dict[str, list[ProgramInstance]] = {}
            for one in given:
                by_stage.setdefault(one.program.stage, []).append(one)
            first, kv_len = page_starts[request], kv_lens[request]
            pages = meta.pages[first : first + -(-kv_len // pool.page_size)].long()
            self._items.append(_Item(request, starts[request], starts[request + 1], pages, kv_len, by_stage))
        self._watched = [item for item in self._items if WATCHING in item.programs]
        self._selecting = [item for item in self._items if SELECTING in item.programs and item.last - item.first == 1]
        self._steered = [item for item in self._items if STEERING in item.programs]
        if self._selecting:
            self._bounds = pool.key_bounds()
            self._bounds.users.update(one for item in self._selecting for one in item.programs[SELECTING])

    # --- hidden states ---------------------------------------------------------------------------

    def steers(self, layer: int) -> bool:
        """Whether `hidden` has something to do in front of a layer."""
        return any(item.of(STEERING, layer) for item in self._steered)

    def hidden(self, layer: int, x: torch.Tensor) -> None:
        """Change rows of x [T, hidden], the residual stream in front of the layer, in place."""
        turn = 0
        while groups := self._groups(layer, turn):
            for code, owners in groups.items():
                for run in [owners] if not code.program.states else [[one] for one in owners]:
                    self._steer(code, run, layer, x)
            turn += 1

    def _steer(self, code: Compiled, owners: list[tuple[_Item, ProgramInstance]], layer: int, x: torch.Tensor) -> None:
        """Rows of passes that share a program, or of one with states, which go on from its last token."""
        rows = torch.cat([torch.arange(item.first, item.last) for item, _ in owners]).to(x.device)
        one = owners[0][1]
        states = [state[None] for state in self.pending.get(one, one.states)]
        for start in range(0, len(rows), code.num_together):
            part = rows[start : start + code.num_together]
            inputs = {"hidden": x[part].float(), "position": self._positions[part]}
            inputs["layer"] = torch.full_like(inputs["position"], layer)
            if states and part[-1] == rows[-1]:
                last = Given({name: value[-1:] for name, value in inputs.items()}, states)
                self.pending[one] = [state[0].clone() for state in code.updated(last, code.result(last)[1])]
            found, _ = code.result(Given(inputs, [state.expand(len(part), *state.shape[1:]) for state in states]))
            assert found is not None
            x[part] = found.to(x.dtype)
        for item, owner in owners:
            owner.counts["rows"] += item.last - item.first

    def _groups(self, layer: int, turn: int) -> dict[Compiled, list[tuple[_Item, ProgramInstance]]]:
        """Of each pass the program that comes at this turn, by program."""
        groups: dict[Compiled, list[tuple[_Item, ProgramInstance]]] = {}
        for item in self._steered:
            found = item.of(STEERING, layer)
            if turn < len(found):
                groups.setdefault(found[turn].code, []).append((item, found[turn]))
        return groups

    # --- attention -------------------------------------------------------------------------------

    def selects(self, layer: int) -> bool:
        """Whether `attention` has something to do in a layer.  One with a sliding window reads few pages as it is."""
        if self._watched:
            return True
        return not self._config.windows[layer] and any(item.of(SELECTING, layer) for item in self._selecting)

    def attention(self, layer: int, queries: torch.Tensor) -> AttentionMeta:
        """What attention of this layer is given: rows that select pages have shorter tables.

        `queries` is [T, num_heads, head_dim], as attention gets them.
        """
        for item in self._watched:
            item.mass.append(self._mass(layer, item, queries))
        chosen = {}
        for item in self._selecting:
            found = item.of(SELECTING, layer)
            if found and not self._config.windows[layer]:
                kept = self._kept(layer, item, found, queries)
                if kept is not None:
                    chosen[item.request] = kept
        return self._meta if not chosen else self._shortened(chosen)

    def _kept(
        self, layer: int, item: _Item, programs: Sequence[ProgramInstance], queries: torch.Tensor
    ) -> torch.Tensor | None:
        """Places of the pages that all `programs` keep, and of the last one; None: all of them."""
        num_pages = len(item.pages)
        is_kept = torch.ones(num_pages, dtype=torch.bool, device=queries.device)
        query = queries[item.first].float()
        inputs = dict(self._page_inputs(layer, item, query, {name for one in programs for name in one.program.inputs}))
        for one in programs:
            found, _ = one.code.result(Given(inputs, (), num_pages))
            assert found is not None
            is_kept &= found[0]
        is_kept[-1] = True
        num_kept = int(is_kept.sum())
        for one in programs:
            one.counts["rows"] += 1
            one.counts["pages_held"] += num_pages
            one.counts["pages_read"] += num_kept
        return None if num_kept == num_pages else is_kept.nonzero()[:, 0]

    def _page_inputs(
        self, layer: int, item: _Item, query: torch.Tensor, names: set[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "position", self._positions[item.first : item.last]
        yield "layer", torch.full_like(self._positions[item.first : item.last], layer)
        yield "query", query[None]
        if names.isdisjoint(("bound", "key_min", "key_max")):
            return
        num_last = item.kv_len - (len(item.pages) - 1) * self._pool.page_size
        bounds = self._bounds.of(layer, item.pages, num_last)
        group = self._config.num_heads // self._config.num_kv_heads
        if "bound" in names:
            heads = query.view(-1, group, query.shape[-1])
            both = torch.cat((heads.clamp_max(0), heads.clamp_min(0)), -1)  # what meets the least, and the greatest
            most = torch.matmul(bounds.flatten(2).transpose(0, 1), both.transpose(1, 2))
            yield "bound", most.transpose(0, 1).reshape(1, len(item.pages), -1)
        if "key_min" in names:
            yield "key_min", bounds[:, :, 0].repeat_interleave(group, 1)[None]
        if "key_max" in names:
            yield "key_max", bounds[:, :, 1].repeat_interleave(group, 1)[None]

    def _shortened(self, chosen: dict[int, torch.Tensor]) -> AttentionMeta:
        """The same attention, where these requests have only the pages at those places."""
        meta, size = self._meta, self._pool.page_size
        starts, kv_lens = meta.page_indptr.tolist(), meta.kv_lens.tolist()
        by_request = {item.request: item for item in self._selecting}
        tables = []
        for request, kv_len in enumerate(kv_lens):
            if request in chosen:
                places, item = chosen[request], by_request[request]
                tables.append(item.pages[places].to(meta.pages.dtype))
                kv_lens[request] = kv_len - (len(item.pages) - len(places)) * size
            else:
                tables.append(meta.pages[starts[request] : starts[request] + -(-kv_len // size)])
        indptr = torch.tensor([0, *map(len, tables)]).cumsum(0)
        return replace(
            meta,
            pages=torch.cat(tables),
            page_indptr=indptr.to(meta.page_indptr),
            kv_lens=torch.tensor(kv_lens).to(meta.kv_lens),
            max_kv_len=max(kv_lens),
            plans={},
        )

    def _mass(self, layer: int, item: _Item, queries: torch.Tensor) -> torch.Tensor:
        """What the tokens of a pass attend to in a layer, by page, in the mean over heads: float32 [P]."""
        c, size = self._config, self._pool.page_size
        keys = self._pool.layers[layer][item.pages, 0].float().transpose(0, 1).flatten(1, 2)[:, : item.kv_len]
        slot = torch.arange(item.kv_len, device=queries.device)
        total = queries.new_zeros(len(item.pages) * size, dtype=torch.float32)
        most = max(1, SLICE_BYTES // (4 * c.num_heads * item.kv_len))
        for start in range(item.first, item.last, most):
            rows = queries[start : min(start + most, item.last)].float()
            own = item.kv_len - (item.last - start) + torch.arange(len(rows), device=queries.device)
            scores = torch.einsum("tkgd,ksd->tkgs", rows.view(len(rows), c.num_kv_heads, -1, c.head_dim), keys)
            scores = scores * c.softmax_scale
            if c.attention_softcap:
                scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
            is_hidden = slot > own[:, None]
            if c.windows[layer]:
                is_hidden |= slot <= own[:, None] - c.windows[layer]
            weights = scores.masked_fill(is_hidden[:, None, None], -torch.inf).softmax(-1)
            total[: item.kv_len] += weights.sum((0, 1, 2)) / c.num_heads
        return total.view(-1, size).sum(1)

    # --- behind the pass -------------------------------------------------------------------------

    def finish(self) -> None:
        """Programs of stage `attention` look at the pass; `pending` has the next states of all."""
        pending = self.pending
        for item in self._watched:
            mass = torch.stack(item.mass).mean(0)
            for one in item.programs[WATCHING]:
                last = self._positions[item.last - 1 : item.last]
                states = [state[None] for state in one.states_for(len(mass), pending.get(one))]
                given = Given({"mass": mass[None], "position": last}, states, len(mass))
                _, values = one.code.result(given)
                pending[one] = [state[0] for state in one.code.updated(given, values)]
                one.counts["rows"] += item.last - item.first
