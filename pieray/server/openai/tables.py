"""Every field that OpenAI and vLLM know of a request: what becomes of it here, or why it is refused.

A field has a row in the table of its route.  `None` is a field that is not given.
`docs/openai-fields.md` is made from these tables by `python -m tools.fields`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pieray.server.openai.fields import Field, Take, refused
from pieray.server.openai.grammars import (
    choice_grammar,
    json_grammar,
    lark_grammar,
    regex_grammar,
    response_format,
    structured_outputs,
)
from pieray.server.openai.messages import messages, tool_choice, tools
from pieray.server.problems import BadField
from pieray.server.values import boolean, integer, listed, mapping, number, one_of, shown, text, tokens

MOST_CHOICES = 128
MOST_LOGPROBS = 20
MOST_STOPS = 64

# --- what becomes of them


def _same(check: Callable[..., Any], *bounds: Any) -> Take:
    """The argument of the same name."""
    return lambda name, value: {name: check(name, value, *bounds)}


def _stop(name: str, value: Any) -> dict[str, Any]:
    found = [value] if isinstance(value, str) else listed(name, value, MOST_STOPS)
    return {"stop": [text(name, one, 1024) for one in found if one != ""]}


def _max_tokens(name: str, value: Any) -> dict[str, Any]:
    return {"max_tokens": integer(name, value, 1, (1 << 32) - 1)}


def _top_k(name: str, value: Any) -> dict[str, Any]:
    return {"top_k": max(integer(name, value, -1, (1 << 32) - 1), 0)}


def _seed(name: str, value: Any) -> dict[str, Any]:
    return {"seed": integer(name, value, -(1 << 63), (1 << 63) - 1) % (1 << 64)}


def _logit_bias(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    for token in given:
        if len(token) > 10 or not token.isascii() or not token.isdigit() or int(token) >= 1 << 32:
            raise BadField(name, f"names tokens by id; given {shown(token)}")
    return {"logit_bias": {token: number(f"{name}.{token}", bias, -100, 100) for token, bias in given.items()}}


def _n(name: str, value: Any) -> dict[str, Any]:
    return {"n": integer(name, value, 1, MOST_CHOICES)}


def _truncate(name: str, value: Any) -> dict[str, Any]:
    if integer(name, value, -1, (1 << 32) - 1) == 0:
        raise BadField(name, "is the number of tokens to keep, or -1: as many as the model takes; given 0")
    return {"truncate_prompt_tokens": value}


def _side(name: str, value: Any) -> dict[str, Any]:
    return {"truncation_side": one_of(name, value, ("left", "right"))}


def _priority(name: str, value: Any) -> dict[str, Any]:
    return {"priority": -integer(name, value, -100, 100)}


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    found = {}
    for option, one in given.items():
        if one is None:
            continue
        if option == "include_usage":
            found["include_usage"] = boolean(f"{name}.{option}", one)
        elif one is not False:
            raise BadField(f"{name}.{option}", "is not served here: only include_usage is", code="unsupported_field")
    return found


def _label(name: str, value: Any) -> dict[str, Any]:
    return {name: text(name, value, 512)}


def _request_id(name: str, value: Any) -> dict[str, Any]:
    found = text(name, value, 128)
    if not found.isprintable() or not found.isascii() or not found:
        raise BadField(name, f"is a text of printable ASCII; given {shown(value)}")
    return {name: found}


def _effort(name: str, value: Any) -> dict[str, Any]:
    effort = one_of(name, value, ("none", "minimal", "low", "medium", "high", "xhigh", "max"))
    return {"reasoning_effort": effort}


# --- prompts and inputs


def _prompts(name: str, value: Any) -> dict[str, Any]:
    return {"prompts": _texts_or_tokens(name, value)}


def _inputs(name: str, value: Any) -> dict[str, Any]:
    return {"inputs": _texts_or_tokens(name, value)}


def _texts_or_tokens(name: str, value: Any) -> list[str | list[int]]:
    """A text, its token ids, or a list of either."""
    if isinstance(value, str):
        return [text(name, value, 1 << 24)]
    given = listed(name, value, 1 << 20)
    if not given:
        raise BadField(name, "is empty")
    if isinstance(given[0], int):
        return [tokens(name, given)]
    if len(given) > 2048:
        raise BadField(name, f"is at most 2048 texts; given {len(given)}")
    return [
        text(f"{name}[{at}]", one, 1 << 24) if isinstance(one, str) else tokens(f"{name}[{at}]", one)
        for at, one in enumerate(given)
    ]


# --- the tables


DOORS = (
    Field("model", "OpenAI", "the served model, or an installed inferlet", _same(text, 200), is_doors=True),
    Field("stream", "OpenAI", "server-sent events", _same(boolean), is_doors=True),
    Field("stream_options", "OpenAI", "`include_usage`", _stream_options, is_doors=True),
    Field("user", "OpenAI", "written in the log with the run", _label, is_doors=True),
    Field("priority", "vLLM", "from -100 to 100, lower goes first", _priority, is_doors=True),
    Field("request_id", "vLLM", "part of the answer's id", _request_id, is_doors=True),
    Field("session_id", "vLLM", "written in the log with the run", _label, is_doors=True),
)

SAMPLING = (
    Field("frequency_penalty", "OpenAI", "a pass over the sampler a token", _same(number, -2, 2)),
    Field("presence_penalty", "OpenAI", "a pass over the sampler a token", _same(number, -2, 2)),
    Field("logit_bias", "OpenAI", "by token id, from -100 to 100", _logit_bias),
    Field("n", "OpenAI", f"1 to {MOST_CHOICES} choices, which share the prompt's KV", _n),
    Field("seed", "OpenAI", "the same seed, the same text; choice i is drawn with seed + i", _seed),
    Field("stop", "OpenAI", f"a text or up to {MOST_STOPS}", _stop),
    Field("temperature", "OpenAI", "0 to 2; 1 if not given", _same(number, 0, 2)),
    Field("top_p", "OpenAI", "0 to 1", _same(number, 0, 1)),
    Field("top_k", "vLLM", "0 and -1: all", _top_k),
    Field("min_p", "vLLM", "0 to 1", _same(number, 0, 1)),
    Field("stop_token_ids", "vLLM", "they end a choice, and are no part of its text", _same(tokens, MOST_STOPS)),
    Field("ignore_eos", "vLLM", "goes on to max_tokens", _same(boolean)),
    Field("min_tokens", "vLLM", "stop tokens are kept out until there are so many", _same(integer, 0, (1 << 32) - 1)),
    Field("allowed_token_ids", "vLLM", "only these tokens", _same(tokens)),
    Field("truncate_prompt_tokens", "vLLM", "so many tokens of the prompt are kept; -1: as the model takes", _truncate),
    Field("truncation_side", "vLLM", "which side is cut off: left (the last are kept) or right", _side),
    Field("prompt_logprobs", "vLLM", "rank: of the k most probable", _same(integer, 0, MOST_LOGPROBS)),
    Field("add_special_tokens", "vLLM", "the tokenizer's own tokens before the prompt", _same(boolean)),
    Field("return_token_ids", "vLLM", "`token_ids`, `prompt_token_ids`", _same(boolean)),
    Field("return_tokens_as_token_ids", "vLLM", "`token_id:ID` in log-probabilities", _same(boolean), is_doors=True),
    Field("response_format", "OpenAI", "text, json_object, json_schema; regex and grammar (Lark)", response_format),
    Field("structured_outputs", "vLLM", "json, regex, choice, grammar (Lark), json_object", structured_outputs),
    Field("guided_json", "vLLM", "a JSON schema", json_grammar),
    Field("guided_regex", "vLLM", "a regular expression", regex_grammar),
    Field("guided_choice", "vLLM", "a list of texts", choice_grammar),
    Field("guided_grammar", "vLLM", "a grammar in Lark's notation", lark_grammar),
    refused("use_beam_search", "vLLM", "run the inferlet beam-search", False),
    refused("repetition_penalty", "vLLM", "frequency_penalty and presence_penalty work", 1, 1.0),
    refused("length_penalty", "vLLM", "it is of beam search", 1, 1.0),
    refused("include_stop_str_in_output", "vLLM", "`stop_reason` tells the stop text", False),
    refused("skip_special_tokens", "vLLM", "texts have no special tokens; return_token_ids tells them", True),
    refused("spaces_between_special_tokens", "vLLM", "texts have no special tokens", True),
    refused("logprob_token_ids", "vLLM", "the most probable tokens are told"),
    refused("bad_words", "vLLM", "the inferlet backtrack shows how", []),
    refused("logits_processors", "vLLM", "an inferlet of your own chooses tokens as it likes", []),
    refused("cache_salt", "vLLM", "tenants share no pages; give each user a tenant"),
    refused("kv_transfer_params", "vLLM", "prefill and decode are not apart here"),
    refused("ec_transfer_params", "vLLM", "there is no encoder"),
    refused("vllm_xargs", "vLLM", "an inferlet of your own takes fields of its own", {}),
    refused("repetition_detection", "vLLM", "an inferlet of your own can"),
    refused("thinking_token_budget", "vLLM", "max_tokens bounds the whole reply", -1),
    refused("stream_interval", "vLLM", "every token is sent at once", 1),
    refused("watermarking", "vLLM", "there is none", False),
    refused("routed_experts_prompt_start", "vLLM", "no experts are told", 0),
    refused("return_token_offsets", "vLLM", "there is no render route", False),
    refused("return_mm_kwargs", "vLLM", "there is no render route", True),
    refused("guided_decoding_backend", "vLLM", "it is llguidance", "guidance", "auto"),
    refused("guided_whitespace_pattern", "vLLM", "JSON is written on one line, unless the schema has x-guidance"),
    refused("structural_tag", "vLLM", "grammars are JSON schemas, regular expressions and Lark"),
)

CHAT = (
    Field("messages", "OpenAI", "texts, and parts that are texts", messages),
    *DOORS,
    Field("safety_identifier", "OpenAI", "written in the log with the run", _label, is_doors=True),
    Field(
        "prompt_cache_key",
        "OpenAI",
        "written in the log: pages are found by content in any case",
        _label,
        is_doors=True,
    ),
    Field("max_tokens", "OpenAI", "at least 1; as much as the model's context has, if not given", _max_tokens),
    Field("max_completion_tokens", "OpenAI", "the same", _max_tokens),
    Field("logprobs", "OpenAI", "of each token", lambda name, value: {"has_logprobs": boolean(name, value)}),
    Field(
        "top_logprobs",
        "OpenAI",
        f"0 to {MOST_LOGPROBS}: a pass more a token",
        lambda name, value: {"top_logprobs": integer(name, value, 0, MOST_LOGPROBS)},
    ),
    Field("tools", "OpenAI", "functions, in the model's own format", tools),
    Field("tool_choice", "OpenAI", "none, auto, required, or a function: the last two by grammar", tool_choice),
    Field("parallel_tool_calls", "OpenAI", "false: the first call alone", _same(boolean)),
    Field("reasoning_effort", "OpenAI", "told to the chat template; none: `enable_thinking` is false", _effort),
    *SAMPLING,
    Field("include_reasoning", "vLLM", "false: thoughts are left out", _same(boolean)),
    Field("add_generation_prompt", "vLLM", "false: the assistant's turn is not begun", _same(boolean)),
    Field("continue_final_message", "vLLM", "the last message goes on", _same(boolean)),
    Field(
        "chat_template_kwargs",
        "vLLM",
        "names that the model's template knows",
        lambda name, value: {"template": mapping(name, value)},
    ),
    refused("echo", "vLLM", "the messages are the client's own", False),
    refused("chat_template", "vLLM", "the model's own is used"),
    refused("documents", "vLLM", "put them into a message", []),
    refused("mm_processor_kwargs", "vLLM", "the model reads texts"),
    refused("media_io_kwargs", "vLLM", "the model reads texts"),
    refused("return_prompt_text", "vLLM", "return_token_ids tells the prompt's tokens", False),
    refused("best_of", "vLLM", "run the inferlet best-of-n", 1),
    refused("audio", "OpenAI", "the model writes texts"),
    refused("modalities", "OpenAI", "the model writes texts", ["text"]),
    refused("functions", "OpenAI", "use tools", []),
    refused("function_call", "OpenAI", "use tool_choice", "none"),
    refused("metadata", "OpenAI", "nothing is stored", {}),
    refused("store", "OpenAI", "nothing is stored", False),
    refused("moderation", "OpenAI", "there is none"),
    refused("prediction", "OpenAI", "drafts come from the prompt, or from an inferlet"),
    refused("prompt_cache_options", "OpenAI", "pages are found by content, and kept as long as there is room"),
    refused("prompt_cache_retention", "OpenAI", "pages are kept as long as there is room", "in_memory", "in-memory"),
    refused("service_tier", "OpenAI", "priority works", "auto", "default"),
    refused("verbosity", "OpenAI", "say so in a message", "medium"),
    refused("web_search_options", "OpenAI", "an inferlet may ask the web"),
)

COMPLETIONS = (
    Field("prompt", "OpenAI", "a text, token ids, or a list of either", _prompts),
    *DOORS,
    Field(
        "max_tokens",
        "OpenAI",
        "16 if not given; 0 with echo",
        lambda n, v: {"max_tokens": integer(n, v, 0, (1 << 32) - 1)},
    ),
    Field("logprobs", "OpenAI", f"0 to {MOST_LOGPROBS}", _same(integer, 0, MOST_LOGPROBS)),
    Field("echo", "OpenAI", "the prompt before its continuation", _same(boolean)),
    *SAMPLING,
    refused("best_of", "OpenAI", "run the inferlet best-of-n", 1),
    refused("suffix", "OpenAI", "no model here fills in", ""),
    refused("prompt_embeds", "vLLM", "the inferlet soft-prompt shows how"),
)

EMBEDDINGS = (
    Field("input", "OpenAI", "a text, token ids, or a list of either", _inputs),
    *(field for field in DOORS if field.name not in ("stream", "stream_options")),
    Field(
        "encoding_format",
        "OpenAI",
        "float or base64",
        lambda name, value: {name: one_of(name, value, ("float", "base64"))},
        is_doors=True,
    ),
    Field("truncate_prompt_tokens", "vLLM", "the first so many tokens; -1: as many as the model takes", _truncate),
    refused("dimensions", "OpenAI", "vectors are as long as the model's hidden state"),
    refused("add_special_tokens", "vLLM", "the tokenizer's own tokens come first", True),
    refused("truncation_side", "vLLM", "the end is cut off", "right"),
    refused("normalize", "vLLM", "vectors have length 1", True),
    refused("use_activation", "vLLM", "vectors have length 1", True),
    refused("additional_data", "vLLM", "nothing reads it"),
    refused("mm_processor_kwargs", "vLLM", "the model reads texts"),
    refused("embed_dtype", "vLLM", "vectors are float32", "float32"),
    refused("endianness", "vLLM", "little", "native", "little"),
    refused("cache_salt", "vLLM", "tenants share no pages; give each user a tenant"),
)
