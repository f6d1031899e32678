"""Random programs over contexts, by several inferlets at once, some of which fail or are killed: every context says
what one inferlet alone would say that computed it from nothing, and every page comes back."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from programs import program

from pieray.errors import PierayError

GUEST = program(
    """
import json
from inferlet import Context, session

async def apply(ctx, op, *args):
    if op == "append":
        ctx.append(args[0])
    elif op == "flush":
        await ctx.flush()
    elif op == "generate":
        await ctx.generate(args[0], stop_tokens=())
    elif op == "mask":
        first, last = (int(part * ctx.position) for part in args[:2])
        ctx.mask(first, last, args[2])
    elif op == "truncate":
        ctx.truncate(max(1, int(args[0] * ctx.position)))

async def main(script, end):
    contexts, said = {}, {}
    for key, op, *args in script:
        if op == "new":
            contexts[key] = Context(args[0])
        elif op == "fork":
            contexts[key] = contexts[args[0]].fork()
        elif op in ("open", "take"):
            contexts[key] = await getattr(Context, op)(args[0])
        elif op == "save":
            await contexts[key].save(args[0])
        elif op == "delete":
            await Context.delete(args[0])
        elif op == "close":
            said[key] = contexts[key].tokens
            contexts.pop(key).close()
        else:
            await apply(contexts[key], op, *args)
    said |= {key: ctx.tokens for key, ctx in contexts.items()}
    session.send(json.dumps(said))
    if end == "killed":
        await session.receive()
    if end == "failed":
        raise ValueError("on purpose")
""",
    "random-program",
)

TEXTS = ["the quick brown fox ", "12+7=", "a b c d e f g h ", "Sort: 3 1 2 -> ", "and 20+31= as before "]
Recipe = list[list[Any]]


class Scripts:
    """Scripts for the inferlets of one round after another, and how each context could be had alone."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.saved: dict[str, Recipe] = {}  # by name: exports of the rounds before
        self.num_saved = 0

    def round(self, num_inferlets: int, num_ops: int) -> list[tuple[list[list[Any]], dict[str, Recipe]]]:
        names = sorted(self.saved)
        self.rng.shuffle(names)
        half = len(names) // 2
        shared, others = names[:half], names[half:]
        fresh: dict[str, Recipe] = {}
        deleted: list[str] = []
        scripts = []
        for number in range(num_inferlets):  # each may delete or take names of its own: nobody else opens those
            own = others[number::num_inferlets]
            scripts.append(self.script(num_ops, shared, own, fresh, deleted))
        for name in deleted:
            del self.saved[name]
        self.saved |= fresh
        return scripts

    def script(
        self, num_ops: int, shared: list[str], own: list[str], fresh: dict[str, Recipe], deleted: list[str]
    ) -> tuple[list[list[Any]], dict[str, Recipe]]:
        rng, ops = self.rng, []
        live: dict[str, Recipe] = {}
        recipes: dict[str, Recipe] = {}
        for number in range(num_ops):
            key, rule = f"c{number}", rng.randrange(10)
            openable = [name for name in (*shared, *own) if name not in deleted]
            if rule == 0 and openable:
                name = rng.choice(openable)
                how = "take" if name in own and rng.random() < 0.5 else "open"
                deleted += [name] if how == "take" else []
                live[key] = recipes[key] = list(self.saved[name])
                ops.append([key, how, name])
            elif rule == 1 and any(name not in deleted for name in own):
                deleted.append(rng.choice([name for name in own if name not in deleted]))
                ops.append([key, "delete", deleted[-1]])
            elif rule == 2 or not live:
                live[key] = recipes[key] = [["append", rng.choice(TEXTS) * rng.randint(1, 4)]]
                ops.append([key, "new", live[key][0][1]])
            else:
                self.change(rng.choice(sorted(live)), key, rule, live, recipes, ops, fresh)
        return ops, recipes

    def change(
        self,
        old: str,
        key: str,
        rule: int,
        live: dict[str, Recipe],
        recipes: dict[str, Recipe],
        ops: list[list[Any]],
        fresh: dict[str, Recipe],
    ) -> None:
        rng, recipe = self.rng, live[old]
        if rule == 3:
            live[key] = recipes[key] = list(recipe)
            ops.append([key, "fork", old])
            return
        if rule == 4:
            name = f"random-{self.num_saved}"
            self.num_saved += 1
            ops.append([old, "save", name])
            recipe.append(["flush"])
            fresh[name] = list(recipe)
            return
        if rule == 5 and len(live) > 1:
            del live[old]
            ops.append([old, "close"])
            return
        start, end = sorted((rng.random(), rng.random()))
        change = {
            6: ["mask", start, end, rng.random() < 0.3],
            7: ["truncate", rng.uniform(0.5, 1.0)],
            8: ["append", rng.choice(TEXTS)],
        }.get(rule, ["generate", rng.randint(1, 12)])
        recipe.append(change)
        ops.append([old, *change])


def said_by(process: Any, end: str) -> dict[str, list[int]]:
    said: dict[str, list[int]] = json.loads(next(event.text for event in process if getattr(event, "text", None)))
    if end == "killed":
        process.kill("enough")
    if end != "well":
        with pytest.raises(PierayError, match="enough|on purpose"):
            process.result(timeout=30)
    else:
        process.result(timeout=30)
    return said


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_contexts_of_many_say_what_one_says_alone(engine: Any, seed: int) -> None:
    scripts = Scripts(seed)
    said: list[list[int]] = []
    recipes: list[Recipe] = []
    num_opened = 0
    for _ in range(4):
        launched = []
        for script, wanted in scripts.round(num_inferlets=3, num_ops=16):
            end = scripts.rng.choice(["well", "well", "failed", "killed"])
            launched.append((engine.launch(GUEST, script=script, end=end), end, wanted))
            num_opened += sum(op[1] in ("open", "take") for op in script)
        for process, end, wanted in launched:
            found = said_by(process, end)
            assert found.keys() == wanted.keys()
            said += [found[key] for key in wanted]
            recipes += wanted.values()
    assert num_opened >= 3
    alone = []
    for start in range(0, len(recipes), 16):
        script = [
            [str(i), *op]
            for i, recipe in enumerate(recipes[start : start + 16])
            for op in [["new", recipe[0][1]], *recipe[1:], ["close"]]
        ]
        found = said_by(engine.launch(GUEST, script=script, end="well"), "well")
        alone += [found[str(i)] for i in range(len(found))]
    assert said == alone
    assert len({tuple(tokens) for tokens in said}) > len(said) // 3
    engine.launch(GUEST, script=[["", "delete", name] for name in scripts.saved], end="well").result(timeout=30)
