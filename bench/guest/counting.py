"""Put before an inferlet's source: notes in the guest what it asks the device for, and sends it at the end.

A *node* is a token in its place: what it sees (other nodes), its id, its position; what a plan draws is a node of that
plan.  Each has to be computed once; one that is asked for twice could have been kept.  Pages are followed through
forks, copies, masks and cuts.

A *request* is what a client of a plain completion endpoint would have to send in its place: the whole text so far, for
each pass whose output the program looks at and each start of a plan.
"""

from functools import wraps as _wraps

from inferlet import _host
from inferlet import kv as _kv
from inferlet import session as _session

_nodes: dict[object, int] = {}
_pages: dict[int, dict[int, tuple[int, bool]]] = {}  # handle -> slot -> node, is it hidden
_plans: dict[int, list] = {}  # handle -> [pages, slots before, nodes seen, position, tokens drawn, ticket]
_passes: dict[int, int] = {}  # handle -> tokens of the text up to its last row
_told = {"requests": 0, "tokens_again": 0, "drawn": 0, "forwards": 0}


def _node(seen: list[int], token: object, position: int) -> int:
    return _nodes.setdefault((hash(tuple(seen)), token, position), len(_nodes))


def _slot(pages: list[int], index: int) -> tuple[dict[int, tuple[int, bool]], int]:
    return _pages.setdefault(pages[index // _page_size()], {}), index % _page_size()


def _page_size() -> int:
    return _kv.page_size()


def _seen(pages: list[int], count: int) -> list[int]:
    found = []
    for index in range(count):
        page, slot = _slot(pages, index)
        node, is_hidden = page.get(slot, (-1, False))
        if not is_hidden and node >= 0:
            found.append(node)
    return found


def _write(
    pages: list[int], start: int, tokens: list, positions: list[int], visible: list | None = None, owner: int = 0
) -> list[int]:
    """Note tokens behind the first `start` slots; the nodes.

    What a pass with a mask of its own tries out, in no place of the text, is that pass's alone (`owner`).
    """
    before, made = _seen(pages, start), []
    for i, token in enumerate(tokens):
        seen = before + made
        if visible is not None:
            seen = [node for node, is_seen in zip(before + made, visible[i], strict=False) if is_seen]
        made.append(
            _node(seen, token if visible is None or positions[i] == start + i else (token, owner), positions[i])
        )
        page, slot = _slot(pages, start + i)
        page[slot] = (made[-1], page.get(slot, (0, False))[1])
    return made


def _around(interface: object, name: str):
    """Replace a handler by one that calls the decorated function behind it, with its result."""

    def decorate(note):
        handler = getattr(interface, name)

        @_wraps(handler)
        def called(*given):
            result = handler(*given)
            note(result, *given)
            return result

        setattr(interface, name, staticmethod(called))
        return note

    return decorate


@_around(_host.forward, "forward")
def _forward(handle, queue, pages, kv_len, tokens, positions, mask):
    pages, tokens = list(pages), list(tokens)
    where = list(positions) or list(range(kv_len, kv_len + len(tokens)))
    width, visible = kv_len + len(tokens), None
    if len(mask):
        bits = [mask[i >> 5] >> (i & 31) & 1 for i in range(width * len(tokens))]
        visible = [bits[i * width : (i + 1) * width] for i in range(len(tokens))]
    _write(pages, kv_len, tokens, where, visible, handle)
    _passes[handle] = max(where) + 1
    _told["forwards"] += 1


@_around(_host.forward, "forward_embeds")
def _forward_embeds(handle, queue, pages, kv_len, embeds, positions, mask):
    _told["forwards"] += 1


def _asked(result, handle, *rest):
    """An output of a pass: a request, once a pass."""
    length = _passes.pop(handle, 0)
    if length:
        _told["requests"] += 1
        _told["tokens_again"] += length
        _told["drawn"] += 1


for _name in ("sample", "sample_with", "logits", "distribution", "logprobs", "entropy", "hidden"):
    _around(_host.forward, _name)(_asked)


@_around(_host.forward, "verify")
def _verify(ticket, queue, pages, kv_len, tokens, drafts, parents, sampler, adapter):
    pages, tokens, drafts = list(pages), list(tokens), list(drafts)
    above, own = list(parents) or list(range(len(drafts))), []
    before = _seen(pages, kv_len) + _write(pages, kv_len, tokens, list(range(kv_len, kv_len + len(tokens))))
    for draft, parent in zip(drafts, above, strict=True):  # its ancestors and the text
        line = own[parent - 1] if parent else before
        own.append([*line, _node(line, draft, kv_len + len(tokens) + len(line) - len(before))])
    _verified[ticket] = (pages, kv_len + len(tokens), before)
    _told["forwards"] += 1
    _told["requests"] += 1
    _told["tokens_again"] += kv_len + len(tokens)


_verified: dict[int, tuple] = {}
_reads: dict[int, int] = {}


@_around(_host.tickets, "take_tokens")
def _take_tokens(tokens, ticket):
    if ticket in _verified:
        pages, start, _ = _verified.pop(ticket)
        _write(pages, start, tokens[:-1], list(range(start, start + len(tokens) - 1)))
        _told["drawn"] += len(tokens)
        _told["requests"] += len(tokens) - 1  # without drafts, a request a token
        _told["tokens_again"] += sum(range(start + 1, start + len(tokens)))
    elif ticket in _reads:
        _drew(_reads.pop(ticket), tokens)


@_around(_host.plans, "create")
def _create(plan, queue, pages, kv_len, tokens, max_tokens, sampler):
    pages, tokens = list(pages), list(tokens)
    _write(pages, kv_len, tokens, list(range(kv_len, kv_len + len(tokens))))
    _plans[plan] = [pages, kv_len + len(tokens), 0, None]


@_around(_host.plans, "start")
def _start(result, plan):
    _told["requests"] += 1
    _told["tokens_again"] += _plans[plan][1]


@_around(_host.plans, "resume")
def _resume(result, plan):
    _start(result, plan)


@_around(_host.plans, "read")
def _read(result, plan, *rest):
    _drew(plan, result[0])


@_around(_host.plans, "next")
def _next(ticket, plan):
    _reads[ticket] = plan


@_around(_host.plans, "next_scored")
def _next_scored(ticket, plan):
    _reads[ticket] = plan


def _drew(plan, tokens):
    """Tokens that a plan has drawn: the last of them is not run."""
    state = _plans[plan]
    for token in tokens:
        if state[3] is not None:
            _write(state[0], state[1], [(state[3], plan)], [state[1]])
            state[1] += 1
            _told["forwards"] += 1
            _told["tokens_again"] += 1
        else:
            _told["forwards"] += 1
        state[3] = token
        state[2] += 1
        _told["drawn"] += 1


@_around(_host.plans, "truncate")
def _plan_truncate(result, plan, count):
    state = _plans[plan]
    keep = max(count, 0)
    state[1] -= max(state[2] - max(keep, 1), 0)
    state[2] = keep
    if not keep:
        state[3] = None


@_around(_host.kv, "fork")
def _fork(forks, pages):
    for fork, page in zip(forks, list(pages), strict=True):
        _pages[fork] = dict(_pages.get(page, {}))


@_around(_host.kv, "mask")
def _mask(result, page, offset, count, visible):
    slots = _pages.setdefault(page, {})
    for slot in range(offset, offset + count):
        slots[slot] = (slots.get(slot, (-1, False))[0], not visible)


@_around(_host.kv, "copy")
def _copy(result, queue, src, src_offset, dst, dst_offset, count):
    source, target = _pages.setdefault(src, {}), _pages.setdefault(dst, {})
    target.update({dst_offset + i: source.get(src_offset + i, (-1, False)) for i in range(count)})


def _sent() -> None:
    _session.emit("counted", {**_told, "least": len(_nodes)})
