"""Exports, snapshots and masks on a running engine: what is opened continues exactly as what was computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from programs import program

from pieray.errors import Denied, InvalidRequest, NotFound

SAVE = program(
    """
from inferlet import Context

async def main(name, text, ttl=0.0, access="owner", replace=True):
    async with Context(text) as ctx:
        await ctx.save(name, ttl=ttl, access=access, replace=replace)
        return ctx.sequence.kv_len
""",
    "save",
)

OPEN = program(
    """
from inferlet import Context

async def main(name, more="", max_tokens=12, how="open"):
    async with await getattr(Context, how)(name) as ctx:
        num_there = ctx.sequence.kv_len
        ctx.append(more)
        generation = ctx.generate(max_tokens, logprobs=True, stop_tokens=())
        await generation
        return [generation.tokens, generation.logprobs, num_there]
""",
    "open",
)

COMPUTE = program(
    """
from inferlet import Context

async def main(text, more="", max_tokens=12):
    async with Context(text) as ctx:
        ctx.append(more)
        generation = ctx.generate(max_tokens, logprobs=True, stop_tokens=())
        await generation
        return [generation.tokens, generation.logprobs, 0]
""",
    "compute",
)

LIST = program(
    """
from inferlet import Context, kv

async def main(prefix="", delete=""):
    for name in delete.split():
        await Context.delete(name)
    return [[e.name, e.owner, e.access, e.num_tokens, e.num_importers] for e in await kv.list_exports(prefix)]
""",
    "list",
)

DELETE = program(
    """
from inferlet import Context

async def main(name, access):
    await Context.delete(name, access)
""",
    "delete",
)

TEXT = "the quick brown fox jumps over the lazy dog, and 12+7=19 as 3+4=7, so what is "


@pytest.fixture
def named(engine: Any) -> Iterator[Callable[..., Any]]:
    """Runs programs as some user; whatever they leave under a name is deleted in the end."""
    users = {("local", "local")}

    def run(source: Any, user: str = "local", tenant: str = "local", **arguments: object) -> Any:
        users.add((user, tenant))
        engine.user, engine.tenant = user, tenant
        try:
            return engine.launch(source, arguments).result(timeout=60)
        finally:
            engine.user, engine.tenant = "local", "local"

    yield run
    for user, tenant in users:
        rows = run(LIST, user, tenant)
        for name, owner, access, *_ in rows:
            if owner == user:
                with contextlib.suppress(Denied):  # a public one of the same user name in another tenant
                    run(DELETE, user, tenant, name=name, access=access)


def test_what_another_inferlet_opens_goes_on_as_if_it_had_computed_it(named: Callable[..., Any]) -> None:
    kv_len = named(SAVE, name="s", text=TEXT)
    for more in ("20+31=", "a", ""):
        tokens, logprobs, num_there = named(OPEN, name="s", more=more)
        expected, scores, _ = named(COMPUTE, text=TEXT, more=more)
        assert (tokens, num_there) == (expected, kv_len)
        assert logprobs == pytest.approx(scores, abs=1e-4)
    assert named(LIST) == [["s", "local", "owner", kv_len, 0]]


def test_names_belong_to_users_and_tenants(named: Callable[..., Any]) -> None:
    for access in ("owner", "tenant", "public"):
        named(SAVE, "ann", "acme", name=f"of-{access}", text=TEXT, access=access)
    expected = named(COMPUTE, text=TEXT)[0]
    assert named(OPEN, "bob", "acme", name="of-tenant")[0] == expected
    assert named(OPEN, "eve", "evil", name="of-public")[0] == expected
    for user, tenant, name in (
        ("bob", "acme", "of-owner"),
        ("eve", "evil", "of-owner"),
        ("eve", "evil", "of-tenant"),
        ("ann", "evil", "of-owner"),
    ):
        with pytest.raises(NotFound):
            named(OPEN, user, tenant, name=name)
    with pytest.raises(Denied):
        named(OPEN, "bob", "acme", name="of-tenant", how="take")
    with pytest.raises(Denied):
        named(SAVE, "eve", "evil", name="of-public", text="mine", access="public")
    assert [row[0] for row in named(LIST, "bob", "acme", prefix="of-")] == ["of-public", "of-tenant"]
    assert named(OPEN, "ann", "acme", name="of-owner", how="take")[0] == expected
    with pytest.raises(NotFound):
        named(OPEN, "ann", "acme", name="of-owner")


def test_names_are_replaced_expire_and_are_deleted(named: Callable[..., Any]) -> None:
    named(SAVE, name="r", text=TEXT)
    with pytest.raises(InvalidRequest, match="exists"):
        named(SAVE, name="r", text="12+7=", replace=False)
    named(SAVE, name="r", text="12+7=")
    assert named(OPEN, name="r")[0] == named(COMPUTE, text="12+7=")[0]
    named(SAVE, name="t", text=TEXT, ttl=0.001)
    assert named(LIST, delete="r") == []
    for name in "rt":
        with pytest.raises(NotFound):
            named(OPEN, name=name)


CHAT_AND_MASK = program(
    """
from inferlet import Context

async def main():
    async with Context() as ctx:
        ctx.system("Be kind.").user("12+7=? Think step by step.")
        await ctx.flush()
        ctx.mask(2, 6)
        await ctx.save("c")
        ctx.cue()
        alone = await ctx.collect_text(40)
        async with await Context.open("c") as again:
            again.cue()
            same = await again.collect_text(40)
            names = await Context.names("c")
            ranges = [list(r) for r in again.sequence.hidden]
    taken = await Context.take("c")
    taken.mask(2, 6, visible=True)
    taken.cue()
    shown = await taken.collect_text(40)
    async with Context() as ctx:
        plain = await ctx.system("Be kind.").user("12+7=? Think step by step.").collect_text(40)
    return [alone, same, names, ranges, shown, plain]
""",
    "chat",
)


def test_a_snapshot_keeps_messages_and_masks(named: Callable[..., Any]) -> None:
    alone, same, names, ranges, shown, plain = named(CHAT_AND_MASK)
    assert alone == same
    assert (names, ranges) == (["c"], [[2, 6]])
    assert len(shown) > 0
    assert len(plain) > 0


NOT_A_SNAPSHOT = program(
    """
import json
from inferlet import Context, InvalidRequest, forward, kv, queue

async def main():
    pages = kv.alloc(1)
    await forward.forward(queue.create(), pages, 0, [5, 6, 7])
    said = []
    good = {"context": 3, "model": "", "adapter": None, "tokens": [5, 6, 7], "marks": [], "tools": [], "hidden": [],
            "dropped": [], "template": {}, "now": 0}
    bad = [good | part for part in ({"tokens": [5, -6, 7]}, {"hidden": [[0, 9]]}, {"adapter": "x"}, {"adapter": [1]},
                                    {"tokens": [5, 6]}, {"context": 2}, {"marks": [[3, {}]]}, {"adapter": ["x", "y"]})]
    await kv.export_pages("n", pages, 3, meta=json.dumps(good))
    (await Context.open("n")).close()
    for meta in ("", "{}", "[1]", *map(json.dumps, bad)):
        await kv.export_pages("n", pages, 3, meta=meta, replace=True)
        try:
            await Context.open("n")
        except InvalidRequest as error:
            said.append(str(error)[:31])
    await kv.unexport("n")
    return said
""",
    "not-a-snapshot",
)


def test_what_is_no_snapshot_is_refused_and_its_pages_come_back(named: Callable[..., Any]) -> None:
    said = named(NOT_A_SNAPSHOT)
    others = {
        3: "tokens is an integer from 0 to ",
        4: "end of a mask is an integer fro",
        10: "this snapshot was made with ada",
    }
    assert said == [others.get(number, "export 'n' is no snapshot of a ") for number in range(11)]


MASKS = program(
    """
from inferlet import Context, forward, kv, model, queue

def packed(bits):
    words = [0] * -(-len(bits) // 32)
    for i, bit in enumerate(bits):
        words[i // 32] |= bit << i % 32
    return words

async def main(text, start, end):
    tokens = model.tokenize(text)
    size, line = kv.page_size(), queue.create()
    async with Context(tokens) as ctx:
        await ctx.flush()
        ctx.mask(start, end)
        masked = await ctx.distribution(5)
        ctx.mask(start, end, visible=True)
        plain = await ctx.distribution(5)
    pages, count = kv.alloc(-(-len(tokens) // size)), len(tokens) - 1
    forward.forward(line, pages, 0, tokens[:-1])
    bits = [not start <= i < end for i in range(count + 1)]
    given = forward.forward(line, pages, count, tokens[-1:], mask=packed(bits))
    ids, probabilities = await given.distribution(5)
    return [masked, list(zip(ids, probabilities)), plain]
""",
    "masks",
)


def test_masked_tokens_are_as_if_the_pass_had_that_mask(named: Callable[..., Any]) -> None:
    masked, given, plain = named(MASKS, text=TEXT, start=3, end=37)
    assert [token for token, _ in masked] == [token for token, _ in given]
    assert [p for _, p in masked] == pytest.approx([p for _, p in given], abs=1e-5)
    assert [p for _, p in masked] != pytest.approx([p for _, p in plain], abs=1e-3)


JOINED = program(
    """
from inferlet import forward, kv, model, queue

async def main(first, second):
    a, b = model.tokenize(first), model.tokenize(second)
    size, line = kv.page_size(), queue.create()
    assert len(a) < size and len(b) < size
    pages = kv.alloc(3)
    forward.forward(line, pages[:1], 0, a)
    forward.forward(line, pages[1:2], 0, b, positions=list(range(len(a), len(a) + len(b))))
    try:
        await forward.forward(line, pages, 2 * size, [5])
        return "unwritten slots were read"
    except Exception as error:
        refused = type(error).__name__
    kv.mask(pages[0], len(a), size - len(a))
    kv.mask(pages[1], len(b), size - len(b))
    together = await forward.forward(line, pages, 2 * size, [5], positions=[len(a) + len(b)]).distribution(5)
    plain = kv.alloc(3)
    words = len(a) + len(b)
    bits = [i <= j and (i >= len(a)) == (j >= len(a)) for j in range(words) for i in range(words)]
    mask = [sum(bit << k for k, bit in enumerate(bits[n:n + 32])) for n in range(0, len(bits), 32)]
    forward.forward(line, plain, 0, a + b, mask=mask)
    expected = await forward.forward(line, plain, words, [5]).distribution(5)
    return [refused, together, expected]
""",
    "joined",
)


def test_partly_filled_pages_of_two_texts_are_read_as_one(named: Callable[..., Any]) -> None:
    refused, together, expected = named(JOINED, first="the quick", second="12+7=")
    assert refused == "InvalidRequest"
    assert together[0] == expected[0]
    assert together[1] == pytest.approx(expected[1], abs=1e-5)


MEMORY = program(
    """
from inferlet import Context, InvalidRequest, OutOfPages, QuotaExceeded, kv

async def main(total):
    async with Context("12+7=") as ctx:
        await ctx.reserve(100)
        text = await ctx.collect_text(8)
        ctx.idle()
        said = [text]
        for count in (total + 1, 10_000_000):
            try:
                await kv.reserve(count)
            except (OutOfPages, QuotaExceeded) as error:
                said.append(type(error).__name__)
        return said
""",
    "memory",
)


def test_memory_is_reserved_and_given_back(engine: Any, named: Callable[..., Any]) -> None:
    (pages,) = [a for a in engine.status()["actors"] if a["role"] == "resource-manager"]
    said = named(MEMORY, total=min(pages["total"], 4096))
    assert said[0]
    assert set(said[1:]) <= {"OutOfPages", "QuotaExceeded"}
    assert len(said) == 3
