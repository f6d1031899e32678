"""Images through a running engine: texts equal those of transformers' `generate`, and hostile images fail alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import assert_pages_return, run
from seeing import file_of, inputs_of, make_seeing, picture
from transformers import AutoTokenizer

import pieray
from pieray import ProgramSource
from pieray.server.openai.messages import messages

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
        self.settings = {"path": str(folder), "page_size": 4, "num_pages": 128, "image_pixels": 1 << 16}
        self.engine: Any = pieray.start(namespace=f"tests-{family}", model=self.settings)

    def greedy(self, messages: list[dict[str, Any]], pictures: list[Any], max_tokens: int, **options: Any) -> list[int]:
        """By transformers' `generate`."""
        inputs = inputs_of(self.family, self.folder, messages, pictures)
        found = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, **options)
        tokens: list[int] = found[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens

    def text(self, tokens: list[int]) -> str:
        """Without special tokens."""
        text: str = AutoTokenizer.from_pretrained(self.folder).decode(tokens, skip_special_tokens=True)
        return text


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

    def found(file: str) -> tuple[list[list[int]], int]:
        process = seen.engine.launch(CONVERSE, {"files": [file], "questions": ["Which?"], "max_tokens": 1})
        return process.result(timeout=60), process.usage()["tokens_found"]

    pictures = [picture(40, 32, seed) for seed in (7, 8)]  # of one size, that no other test has shown
    files = [base64.b64encode(file_of(one)).decode() for one in pictures]
    (first, _), (again, many), (other, few) = (found(files[index]) for index in (0, 0, 1))
    assert first == again == [seen.greedy([asked("Which?")], pictures[:1], 1)]
    assert many - few >= 16, "the image's own tokens"
    assert few <= 8, "what comes before the image"
    assert other == [seen.greedy([asked("Which?")], pictures[1:], 1)]


AWAY = program('''
import asyncio
from inferlet import Context


async def main(files: list[str], questions: list[str], num: int, max_tokens: int, together: bool):
    """So many contexts about the images in turn, each of which is continued twice."""
    contexts = []
    for number in range(num):
        ctx = Context(reuse=False)
        await ctx.image(files[number % 2], questions[number % 2])
        contexts.append(ctx.cue())
    starts = [ctx.position for ctx in contexts]
    for _ in range(2):
        if together:
            await asyncio.gather(*(ctx.generate(max_tokens, stop_tokens=()) for ctx in contexts))
        else:
            for ctx in contexts:
                await ctx.generate(max_tokens, stop_tokens=())
    return [ctx.tokens[start:] for ctx, start in zip(contexts, starts)]
''')


def outlived(seen: Seen, engine: Any) -> dict[str, int]:
    """Contexts of twice the pool say what transformers does; what that took."""
    inputs = {"files": seen.files, "questions": QUESTIONS, "num": 12, "max_tokens": 20, "together": True}
    process = engine.launch(AWAY, inputs)
    found = process.result(timeout=120)
    want = [seen.greedy([asked(QUESTIONS[i])], seen.pictures[i : i + 1], 40, eos_token_id=[]) for i in range(2)]
    assert [found[0], found[1]] == want
    assert found == found[:2] * 6
    usage: dict[str, int] = process.usage()
    return usage


def test_contexts_with_images_outlive_their_memory(seen: Seen) -> None:
    assert outlived(seen, seen.engine)["pages_swapped"] > 40


def test_pages_with_images_are_computed_again(ray_cluster: None, seen: Seen) -> None:
    """Where host memory has no room for pages that are taken, from the same embeddings."""
    if seen.family == "llava":
        pytest.skip("the same way, without positions of its own")
    with pieray.start(namespace="anew", model={**seen.settings, "swap_memory_bytes": 0}) as engine:
        usage = outlived(seen, engine)
    assert usage["pages_swapped"] == 0
    assert usage["tokens_computed"] > 6 * seen.settings["num_pages"], "more than the pool holds, and all was read again"


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


def test_describe_image_answers_each_question_as_if_it_alone_were_asked(seen: Seen) -> None:
    process = seen.engine.launch("describe-image", {"questions": QUESTIONS, "max_tokens": 8})
    process.send_file("photo.png", file_of(seen.pictures[0]))
    found = process.result(timeout=60)
    said = [row["answer"] for row in found["answers"]]
    alone = [
        run(seen.engine, "describe-image", image=f"data:image/png;base64,{seen.files[0]}", questions=one, max_tokens=8)
        for one in QUESTIONS
    ]
    assert said == [one["answers"][0]["answer"] for one in alone]
    assert said[0] == seen.text(seen.greedy([asked(QUESTIONS[0])], seen.pictures[:1], 8))
    assert found["rows"] == alone[0]["rows"] > 1


def test_the_door_takes_images_in_data_urls(seen: Seen) -> None:
    """What `pieray serve` runs for a chat with images, as it hands it over."""
    url = f"data:image/png;base64,{seen.files[0]}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTIONS[0]}]
    given = messages("messages", [{"role": "user", "content": parts}])
    found = run(seen.engine, "openai-generate", **given, max_tokens=8, temperature=0.0)
    want = seen.greedy([asked(QUESTIONS[0])], seen.pictures[:1], 8)
    assert found["choices"][0]["content"] == seen.text(want)
    inputs = inputs_of(seen.family, seen.folder, [asked(QUESTIONS[0])], seen.pictures[:1])
    assert found["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]


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
