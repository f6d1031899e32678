"""The references of the Python SDK and of the client's API: up to date, whole, and with links that lead somewhere."""

from __future__ import annotations

import re

import pytest

import inferlet
import pieray
import pieray_client
from tools import references


def test_the_references_are_what_the_docstrings_say() -> None:
    assert not references.stale(), "run `python -m tools.references`"


def test_every_public_name_has_an_entry() -> None:
    sdk, client = references.sdk_page(), references.client_page()
    listed = set(re.findall(r"^#+ (?:class )?([\w.]+)", sdk, re.M)) | set(re.findall(r"^## Module (\w+)", sdk, re.M))
    own = {"TaskGroup", "gather", "sleep", "timeout", "Quota", "Deadline"}  # asyncio's; other names of two errors
    assert set(inferlet.__all__) - own <= listed
    assert {"kv.export_pages", "forward.Pass", "tickets.Ticket", "model.TextStream", "testing.run"} <= listed
    assert {"Context.generate", "Context.save", "Context.drop", "Generation.events"} <= listed, "inherited ones too"
    served = set(re.findall(r"^## (?:class )?(\w+)", references.http_client_page(), re.M))
    assert set(pieray_client.__all__) - {"Event"} == served
    assert set(pieray.__all__) - {"__version__"} <= served | set(re.findall(r"^## (?:class )?(\w+)", client, re.M))


PAGES = [references.sdk_page, references.client_page, references.http_client_page]


@pytest.mark.parametrize("page", PAGES, ids=["sdk", "client", "http-client"])
def test_links_and_fences_are_whole(page: object) -> None:
    text = page()  # type: ignore[operator]
    titles = {title.lower().replace(" ", "-").replace(".", "") for title in re.findall(r"^#+ (.+)", text, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= titles
    assert text.count("```") % 2 == 0


def test_what_has_no_docstring_is_an_error() -> None:
    import ast

    with pytest.raises(ValueError, match="f has no docstring"):
        references._doc("f", ast.parse("def f(): ...").body[0])  # type: ignore[arg-type]
