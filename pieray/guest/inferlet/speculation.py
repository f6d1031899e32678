"""Drafts by a second model, for `Context.generate(drafter=)`."""

from __future__ import annotations

from collections.abc import Sequence

from . import _convert
from . import model as models
from .context import Context
from .errors import InvalidRequest

FIRST_DRAFTS, MOST_DRAFTS = 4, 12


class DraftModel:
    """A drafter: what another model says next, of which so many tokens are drafted as have lately been right.

        async with Context(prompt) as ctx, Context(model="small") as small:
            print(await ctx.generate(100, drafter=DraftModel(small, ctx)))

    The text is that of `ctx` alone.  Both models have one tokenizer.
    """

    __slots__ = ("_draft", "_drafted", "_num_agreed", "_num_drafts", "_vocab", "num_drafted", "num_passes", "num_right")

    def __init__(self, draft: Context, verifier: Context) -> None:
        """`draft` becomes the text of `verifier`, which generates, and what is drafted behind it.  Raises
        InvalidRequest if both are one."""
        if _convert.instance("draft", draft, Context) is _convert.instance("verifier", verifier, Context):
            raise InvalidRequest("a context cannot draft for itself: give another one, of a smaller model")
        self._draft = draft
        self._vocab = models.info(verifier.model)["vocab_size"]
        self._num_drafts = FIRST_DRAFTS
        self._num_agreed = 0  # tokens of the verifier's text that the draft's has too, as of the last call
        self._drafted: Sequence[int] = ()
        self.num_passes = 0
        """Times that it was asked: passes of the verifier."""
        self.num_drafted = 0
        """Tokens drafted."""
        self.num_right = 0
        """Those of them that the verifier has said too."""

    async def __call__(self, tokens: Sequence[int]) -> Sequence[int]:
        """What comes behind these tokens, perhaps."""
        draft, agreed = self._draft, self._num_agreed
        self._adapt(tokens[agreed:])
        mine = draft.tokens
        most = min(len(mine), len(tokens) - 1)  # the last one is run anew: what follows it is asked for
        while agreed < most and mine[agreed] == tokens[agreed]:
            agreed += 1
        agreed = min(agreed, most)
        draft.truncate(agreed)
        draft.append(tokens[agreed:])
        self._num_agreed = len(tokens)
        count = min(self._num_drafts, models.info(draft.model)["max_context"] - len(tokens))
        drafted: list[int] = []
        if count > 0:
            generation = draft.generate(count, stop_tokens=())
            await generation
            drafted = generation.tokens
        self._drafted = [token for token in drafted if token < self._vocab]
        self.num_passes += 1
        self.num_drafted += len(self._drafted)
        return self._drafted

    def _adapt(self, came: Sequence[int]) -> None:
        """One draft more after all were right, one fewer after less than half were."""
        num_right = 0
        for token, drafted in zip(came, self._drafted, strict=False):
            if token != drafted:
                break
            num_right += 1
        self.num_right += num_right
        if self._drafted and num_right == len(self._drafted):
            self._num_drafts = min(self._num_drafts + 1, MOST_DRAFTS)
        elif num_right < len(self._drafted) / 2:
            self._num_drafts = max(self._num_drafts - 1, 1)
