"""Images through a running engine: texts equal those of transformers' `generate`, and hostile images fail alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import assert_pages_return, run
from seeing import file_of, inputs_of, make_seeing, picture

import pieray
from pieray import ProgramSource

SIZES = [(50, 30), (20, 60)]
QUESTIONS = ["What is this?", "And this one?"]


def program(source: str) -> ProgramSource:
    """One of these tests'."""
    return ProgramSource("images", "images.py", source=source)


class Seen:
    """An engine with a small random model that sees, and transformers' module of it."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        self.model = make_seeing(family, folder)
        self.pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
        self.files = [base64.b64encode(file_of(one)).decode() for one in self.pictures]
        settings = {"path": str(folder), "page_size": 4, "num_pages": 512, "image_pixels": 1 << 16}
        self.engine: Any = pieray.start(namespace=f"tests-{family}", model=settings)

    def greedy(self, messages: list[dict[str, Any]], pictures: list[Any], max_tokens: int) -> list[int]:
        """By transformers' `generate`."""
        inputs = inputs_of(self.family, self.folder, messages, pictures)
        found = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        tokens: list[int] = found[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava"])
def seen(request: pytest.FixtureRequest, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    found = Seen(request.param, tmp_path_factory.mktemp(request.param))
    yield found
    assert_pages_return(found.engine)
    found.engine.close()


def asked(*questions: str) -> dict[str, Any]:
    """A user's message with an image before each text."""
    parts = [part for text in questions for part in ({"type": "image"}, {"type": "text", "text": text})]
    return {"role": "user", "content": parts}


CONVERSE = program('''
from inferlet import Context, gather, images, session


async def main(files: list[str], questions: list[str], max_tokens: int = 16):
    """Both turns of a conversation about an image each; the tokens of the replies."""
    replies = []
    async with Context() as ctx:
        for file, question in zip(files, questions):
            await ctx.image(file, question)
            ctx.cue()
            start = ctx.position
            await ctx.collect_text(max_tokens)
            replies.append(ctx.tokens[start:])
        return replies
''')


def test_texts_about_images_are_those_of_transformers(seen: Seen) -> None:
    first = seen.greedy([asked(QUESTIONS[0])], seen.pictures[:1], 16)
    assert run(seen.engine, CONVERSE, files=seen.files[:1], questions=QUESTIONS[:1]) == [first]
    other = seen.greedy([asked(QUESTIONS[1])], seen.pictures[1:], 16)
    processes = [
        seen.engine.launch(CONVERSE, {"files": [file], "questions": [question]})
        for _ in range(3)
        for file, question in zip(seen.files, QUESTIONS, strict=True)
    ]
    assert [one.result(timeout=60) for one in processes] == [[first], [other]] * 3
    assert first != other


SEVERAL = program('''
from inferlet import Context, gather, images


async def main(files: list[str], questions: list[str]):
    """Two images in one message; what a fork, a truncated context and a saved one say, and the log-probabilities."""
    photos = [await images.see(file) for file in files]
    content = [part for pair in zip(photos, questions) for part in pair]
    async with Context() as ctx:
        ctx.user(content).cue()
        length = ctx.position
        await ctx.flush()
        fork = ctx.fork()
        one, two = await gather(ctx.collect_text(12), fork.collect_text(12))
        tokens = ctx.tokens[length:]
        same = tokens == fork.tokens[length:]
        fork.truncate(length)
        again = Context().user(content).cue()
        drafted = again.generate(12, drafter=lambda tokens: [5, 6])
        said = [token.id async for token in drafted]
        await fork.save("seen")
        opened = await Context.open("seen")
        await opened.collect_text(12)
        masked = Context().user(content).cue()
        masked.mask(0, 1)
        await masked.flush()
        row = ctx.sequence.images[0]
        try:
            fork.truncate(row.start + 1)
        except Exception as error:
            refused = str(error)
        fork.truncate(row.start)
        rest = fork.sequence.images
        scores = await Context().user(content).cue().logprobs(tokens[:2])
        return {
            "tokens": tokens, "same": same, "said": said, "opened": opened.tokens[length:], "refused": refused,
            "rest": len(rest), "scores": scores, "rows": [images.rows(50, 30), photos[0].num_rows],
        }
''')


def test_forks_snapshots_and_drafts_behind_images_say_the_same(seen: Seen) -> None:
    found = run(seen.engine, SEVERAL, files=seen.files, questions=QUESTIONS)
    want = seen.greedy([asked(*QUESTIONS)], seen.pictures, 12)
    assert found["tokens"] == found["said"] == found["opened"] == want
    assert found["same"]
    assert "stays whole" in found["refused"]
    assert found["rest"] == 0
    assert found["rows"][0] == found["rows"][1]
    assert all(score < 0 for score in found["scores"])


def test_a_page_is_found_by_the_image_that_it_holds(seen: Seen) -> None:
    """The same conversation is computed once; another image in its place is not taken for it."""

    def usage(file: str) -> tuple[list[list[int]], dict[str, Any]]:
        process = seen.engine.launch(CONVERSE, {"files": [file], "questions": ["Which?"], "max_tokens": 1})
        result = process.result(timeout=60)
        (row,) = [one for one in seen.engine.ps(all=True) if one["instance"] == process.id]
        return result, row

    (first, _), (again, found), (other, fresh) = (usage(seen.files[index]) for index in (0, 0, 1))
    assert first == again
    assert found["usage"]["tokens_found"] > fresh["usage"]["tokens_found"]
    assert other == [seen.greedy([asked("Which?")], seen.pictures[1:], 1)]


HOSTILE = program('''
from inferlet import Context, Error, images


async def main(files: list[str]):
    """What becomes of each file."""
    found = []
    for file in files:
        try:
            found.append(len(await images.see(file)))
        except Error as error:
            found.append([type(error).__name__, str(error)])
    return found
''')


def test_hostile_images_fail_alone(seen: Seen) -> None:
    beside = seen.engine.launch(CONVERSE, {"files": seen.files[:1], "questions": QUESTIONS[:1]})
    large = file_of(picture(300, 300))
    files = [b"no image", large, file_of(picture(200, 120))[:700], file_of(picture(50, 30))]
    texts = ["not base64 at all!", *(base64.b64encode(one).decode() for one in files)]
    found = run(seen.engine, HOSTILE, files=texts)
    assert [one[0] for one in found[:4]] == ["InvalidRequest", "InvalidRequest", "QuotaExceeded", "InvalidRequest"]
    assert "image_pixels: the limit is 65536; the image has 300 x 300 = 90000" in found[2][1]
    assert isinstance(found[4], int)
    assert beside.result(timeout=60) == [seen.greedy([asked(QUESTIONS[0])], seen.pictures[:1], 16)]


BLIND = program("""
from inferlet import Unsupported, images


async def main():
    try:
        await images.see(b"anything")
    except Unsupported as error:
        return str(error)
""")


def test_a_model_that_does_not_see_says_so(engine: Any) -> None:
    assert run(engine, BLIND) == "pie-tiny (llama) does not see images"
