"""Chat templates with the traits of model families, in short and in our own words, and a host whose model has one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from fake_host import FakeHost

from pieray.models.chat import json_object, json_objects
from pieray.models.chat_parse import parse_reply
from pieray.models.chat_tools import render_with_tools


@dataclass(frozen=True)
class Family:
    """`special`: all special tokens; `stops`: those that end a turn."""

    template: str
    special: str
    stops: str
    bos: str = "<s>"
    max_calls: int = 2
    """In one reply, that the template shows."""

    def render(self, messages: Any, tools: Any = None, *, cue: bool = True, now: int = 0, **names: Any) -> str:
        known = {"bos_token": self.bos, "eos_token": self.stops.split()[-1], **names}
        return render_with_tools(self.template, messages, tools, add_generation_prompt=cue, names=known, now=now)


class FamilyHost(FakeHost):
    """A host whose model has a family's template and tokens: characters, and the special ones."""

    def __init__(self, family: Family, bos: str = "") -> None:
        super().__init__()
        self.family, self.bos = family, bos
        self.special, self.stops = family.special.split(), family.stops.split()

    def model_info(self, model: str) -> str:
        return json.dumps({**json.loads(super().model_info(model)), "bos_tokens": self.model_tokenize("", self.bos)})

    def model_tokenize(self, model: str, text: str) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, self.special))})", text)
        return [
            token
            for part in parts
            for token in ([0x110000 + self.special.index(part)] if part in self.special else map(ord, part))
        ]

    def model_detokenize(self, model: str, tokens: Any, skip_special: bool) -> str:
        return "".join([chr(t) if t < 0x110000 else "" if skip_special else self.special[t - 0x110000] for t in tokens])

    def model_stop_tokens(self, model: str) -> list[int]:
        return [token for stop in self.stops for token in self.model_tokenize("", stop)]

    def chat_render(
        self, model: str, messages: str, tools: str, add_generation_prompt: bool, arguments: str, now: int
    ) -> str:
        return self.family.render(
            json_objects("messages", messages, ""),
            json_objects("tools", tools, "") if tools else None,
            cue=add_generation_prompt,
            now=now,
            **(json_object("arguments", arguments) if arguments else {}),
        )

    def chat_parse(self, model: str, text: str, is_over: bool) -> str:
        return parse_reply(self.family.template, text, is_over=is_over).to_json()


def of(*parts: str) -> str:
    """A template whose lines and indents are for us alone."""
    return "".join(part.strip() for text in parts for part in text.split("\n"))


CHATML = ("<|im_start|> <|im_end|> <|endoftext|>", "<|im_end|> <|endoftext|>", "")

QWEN = Family(
    of(
        r"{%- if tools %}{{- '<|im_start|>tools: ' + tools[0].function.name + '<|im_end|>\n' }}{% endif %}",
        r"""{%- for m in messages %}
    {%- if m.role == 'tool' %}
    {%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
    {{- '\n<tool_response>' + m.content + '</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
    {%- else %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '').split('</think>')[-1].lstrip() }}
    {%- for c in m.tool_calls or [] %}
    {%- if not loop.first or m.content %}{{- '\n' }}{% endif %}
    {{- '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}
    {{- c.function.arguments | tojson }}{{- '}\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\n' }}{% endif %}{% endfor %}
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}
    {%- endif %}{% endif %}""",
    ),
    *CHATML,
)

#: thoughts of the turn that goes on are shown, those before the last question go
QWEN3 = Family(
    of(
        r"""{%- set ns = namespace(last=0) %}
    {%- for m in messages %}{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}""",
        QWEN.template.replace(
            r"(m.content or '').split('</think>')[-1].lstrip()",
            r"('<think>\n' + m.reasoning_content + '\n</think>\n\n' if m.reasoning_content and loop.index0 > ns.last "
            r"else '') + (m.content or '')",
        ),
    ),
    *CHATML,
)

#: a result names its tool
HERMES = Family(
    of(
        r"""{{- bos_token }}{%- if tools %}
    {{- '<|im_start|>system\nCall as <tool_call>{"arguments": , "name": }</tool_call> ' }}
    {%- for t in tools %}{{- t.function | tojson }}{% endfor %}{{- '<|im_end|>\n' }}{% endif %}
    {%- for m in messages %}
    {%- if m.role == 'tool' %}
    {%- if not m.name %}{{- raise_exception('a result names its tool') }}{% endif %}
    {%- if loop.previtem and loop.previtem.role != 'tool' %}{{- '<|im_start|>tool\n' }}{% endif %}
    {{- '<tool_response>\n{"name": "' + m.name + '", "content": ' + m.content + '}\n</tool_response>\n' }}
    {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>' }}{% endif %}
    {%- else %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}
    {%- for c in m.tool_calls or [] %}{%- if c.function is defined %}{% set c = c.function %}{% endif %}
    {{- '<tool_call>\n{ "arguments": ' }}{{- c.arguments | tojson }}{{- ', "name": "' + c.name + '"}\n</tool_call> ' }}
    {%- endfor %}{{- '<|im_end|>\n' }}{% endif %}{% endfor %}
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
    ),
    CHATML[0] + " <s>",
    CHATML[1],
)

R1 = Family(
    of(
        r"""{{- bos_token }}{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '<User>' + m.content }}
    {%- elif m.role == 'tool' %}{{- '<output>' + m.content + '</output>' }}
    {%- else %}{%- for c in m.tool_calls or [] %}{{- '<Assistant><call>' + c.function.name + c.function.arguments }}
    {{- '</call></s>' }}{% endfor %}
    {%- if m.content is not none %}{{- '<Assistant>' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}{% endif %}
    {%- endfor %}{%- if add_generation_prompt %}{{- '<Assistant><think>\n' }}{% endif %}{# <tool_call> tools #}"""
    ),
    "<User> <Assistant> <s> </s>",
    "</s>",
)

#: calls between marks, no tools shown, a prompt that opens the thought
MARKS = {
    name: f"<\uff5c{name.replace(' ', chr(0x2581))}\uff5c>"
    for name in (
        "User",
        "Assistant",
        "tool calls begin",
        "tool calls end",
        "tool call begin",
        "tool call end",
        "tool sep",
        "tool outputs begin",
        "tool outputs end",
        "tool output begin",
        "tool output end",
        "end of sentence",
    )
}
DEEPSEEK = Family(
    re.sub(
        r"@([A-Za-z ]+)@",
        lambda found: MARKS[found[1]],
        of(
            r"""{{- bos_token }}
    {%- for m in messages %}{%- if m.role == 'system' %}{{- m.content }}{% endif %}{% endfor %}
    {%- for m in messages %}
    {%- if m.role == 'user' %}{{- '@User@' + m.content }}
    {%- elif m.role == 'assistant' and m.content is none %}{{- '@Assistant@@tool calls begin@' }}
    {%- for c in m.tool_calls %}{%- if not loop.first %}{{- '\n' }}{% endif %}
    {{- '@tool call begin@function@tool sep@' + c.function.name + '\n```json\n' + c.function.arguments + '\n```' }}
    {{- '@tool call end@' }}{% endfor %}{{- '@tool calls end@@end of sentence@' }}
    {%- elif m.role == 'assistant' %}{{- '@Assistant@' + m.content.split('</think>')[-1] + '@end of sentence@' }}
    {%- elif m.role == 'tool' %}
    {%- if loop.previtem.role != 'tool' %}{{- '@tool outputs begin@' }}{% endif %}
    {{- '@tool output begin@' + m.content + '@tool output end@' }}
    {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '@tool outputs end@' }}{% endif %}{% endif %}{% endfor %}
    {%- if add_generation_prompt %}{{- '@Assistant@<think>\n' }}{% endif %}"""
        ),
    ),
    "<s> " + " ".join(MARKS.values()),
    MARKS["end of sentence"],
)

LLAMA = Family(
    of(
        r"""{{- bos_token }}{%- if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}
    {%- set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}
    {{- '<|system|>' + 'Today: ' + strftime_now('%d %b %Y %H:%M:%S') + '\n' + said + '<|eot_id|>' }}
    {%- if tools %}
    {%- if not messages %}{{- raise_exception('no first user message') }}{% endif %}
    {{- '<|user|>' + tools[0].function.name + ' or: {"name": .., "parameters": ..}\n' + messages[0].content }}
    {{- '<|eot_id|>' }}
    {%- set messages = messages[1:] %}{% endif %}
    {%- for m in messages %}
    {%- if m.role == 'tool' %}{{- '<|ipython|>' + m.content + '<|eot_id|>' }}
    {%- elif 'tool_calls' in m %}
    {%- if m.tool_calls | length != 1 %}{{- raise_exception('single tool-calls only') }}{% endif %}
    {%- set c = m.tool_calls[0].function %}
    {{- '<|assistant|>{"name": "' + c.name + '", "parameters": ' }}{{- c.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}{{- '<|' + m.role + '|>' + m.content + '<|eot_id|>' }}{% endif %}{% endfor %}
    {%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""
    ),
    "<|user|> <|assistant|> <|system|> <|ipython|> <|eot_id|> <|eom_id|> <|python_tag|> <s>",
    "<|eot_id|> <|eom_id|>",
    max_calls=1,
)

PYTHONIC = Family(
    of(
        r"""{{- bos_token }}{%- if messages[0].role == 'system' %}{% set said = messages[0].content %}
    {%- set messages = messages[1:] %}{% else %}{% set said = 'Be a help.' %}{% endif %}
    {{- '<|system|>' + said }}
    {%- if tools %}{{- ' To call: [func_name1(a=1), func_name2(b=2)]. ' }}{{- tools | tojson }}{% endif %}
    {{- '<|eot_id|>' }}
    {%- for m in messages %}
    {%- if m.role == 'tool' %}{{- '<|ipython|>' }}{{- m.content | tojson }}{{- '<|eot_id|>' }}
    {%- elif m.tool_calls %}{{- '<|assistant|>[' }}
    {%- for c in m.tool_calls %}{%- if not loop.first %}{{- ', ' }}{% endif %}{{- c.function.name + '(' }}
    {%- for key, value in c.function.arguments.items() %}{%- if not loop.first %}{{- ', ' }}{% endif %}
    {{- key + '=' }}{{- value | tojson }}{% endfor %}{{- ')' }}{% endfor %}{{- ']<|eot_id|>' }}
    {%- else %}{{- '<|' + m.role + '|>' + m.content + '<|eot_id|>' }}{% endif %}{% endfor %}
    {%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""
    ),
    LLAMA.special,
    LLAMA.stops,
)

#: no tools, no roles but the usual ones
LLAMA3 = Family(
    of(
        r"""{%- for m in messages %}
    {%- if m.role not in ['system', 'user', 'assistant'] %}{{- raise_exception('no role ' + m.role) }}{% endif %}
    {{- (bos_token if loop.first else '') + '<|' + m.role + '|>' + m.content | trim + '<|eot_id|>' }}{% endfor %}
    {%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""
    ),
    LLAMA.special,
    LLAMA.stops,
)

#: tools stand before the last question
MISTRAL = Family(
    of(
        r"""{{- bos_token }}{%- set last = messages | selectattr('role', 'equalto', 'user') | list | last %}
    {%- set ns = namespace(turn=0) %}
    {%- for m in messages %}{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
    {%- if (m.role == 'user') != (ns.turn % 2 == 0) %}{{- raise_exception('roles must alternate') }}{% endif %}
    {%- set ns.turn = ns.turn + 1 %}{% endif %}{% endfor %}
    {%- for m in messages %}
    {%- if m.role == 'user' %}
    {%- if tools and m == last %}{{- '[AVAILABLE_TOOLS] add[/AVAILABLE_TOOLS]' }}{% endif %}
    {{- '[INST] ' + m.content + '[/INST]' }}
    {%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}
    {%- for c in m.tool_calls %}
    {%- if c.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{% endif %}
    {{- '{"name": "' + c.function.name + '", "arguments": ' }}{{- c.function.arguments | tojson }}
    {{- ', "id": "' + c.id + '"}' }}{%- if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}{{- ']' + eos_token }}
    {%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}
    {%- else %}
    {%- if m.tool_call_id | length != 9 %}{{- raise_exception('results name their call') }}{% endif %}
    {{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {% endif %}{%- endfor %}"""
    ),
    "[INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [AVAILABLE_TOOLS] <s> </s>",
    "</s>",
)

#: calls by marks, each with its id; tools at the beginning
MISTRAL11 = Family(
    of(
        r"""{{- bos_token }}{%- if messages[0].role == 'system' %}
    {{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}{%- set messages = messages[1:] %}{% endif %}
    {%- if tools %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}{% endif %}
    {%- for m in messages %}
    {%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}
    {%- elif m.role == 'assistant' %}{{- m.content or '' }}
    {%- for c in m.tool_calls or [] %}
    {%- if c.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{% endif %}
    {{- '[TOOL_CALLS]' + c.function.name + '[CALL_ID]' + c.id + '[ARGS]' }}{{- c.function.arguments | tojson }}
    {%- endfor %}{{- eos_token }}
    {%- elif m.role == 'tool' %}
    {{- '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('no role ' + m.role) }}{% endif %}{%- endfor %}"""
    ),
    "[INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CALLS] [CALL_ID] [ARGS] [TOOL_RESULTS] [TOOL_CONTENT] "
    "[/TOOL_RESULTS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] <s> </s>",
    "</s>",
)

TURNS = ("<start_of_turn> <end_of_turn> <s> <eos>", "<end_of_turn> <eos>")

#: no tools, no system message, turns that alternate
GEMMA2 = Family(
    of(
        r"""{{- bos_token }}
    {%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{% endif %}
    {%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('Roles must alternate') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}{{- m.content | trim }}
    {{- '<end_of_turn>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""
    ),
    *TURNS,
)

#: as Gemma 2, with the system message before the first question; looks at parts of contents
GEMMA3 = Family(
    of(
        r"""{{- bos_token }}{%- set prefix = '' %}
    {%- if messages[0].role == 'system' %}
    {%- set prefix = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\n\n' %}
    {%- set messages = messages[1:] %}{% endif %}
    {%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('Roles must alternate') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (prefix if loop.first else '') }}
    {%- if m.content is string %}{{- m.content | trim }}
    {%- elif m.content is iterable %}{%- for part in m.content %}{{- part.text | trim }}{% endfor %}
    {%- else %}{{- raise_exception('Invalid content type') }}{% endif %}{{- '<end_of_turn>\n' }}{% endfor %}
    {%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""
    ),
    *TURNS,
)

#: as Gemma 3, with tools and calls in Python's syntax
GEMMA = Family(
    of(
        r"""{{- bos_token }}{%- set prefix = '' %}
    {%- if messages[0].role == 'system' %}{% set prefix = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}{% endif %}
    {%- if tools %}{% set prefix = prefix + 'a python list of calls: add\n' %}{% endif %}
    {%- for m in messages %}{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' }}
    {%- if loop.first %}{{- prefix }}{% endif %}
    {%- if 'tool_calls' in m %}{{- '[' }}{%- for c in m.tool_calls %}{{- c.function.name + '(' }}
    {%- for key, value in c.function.arguments.items() %}{{- key + '=' }}{{- value | tojson }}
    {%- if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}{{- ')' }}{%- if not loop.last %}{{- ', ' }}{% endif %}
    {%- endfor %}{{- ']' }}{% endif %}
    {%- if m.content is string %}{{- m.content | trim }}
    {%- else %}{{- raise_exception('Invalid content type') }}{% endif %}
    {{- '<end_of_turn>\n' }}{% endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""
    ),
    *TURNS,
)

#: calls behind a token of their own
GRANITE = Family(
    of(
        r"""{%- if tools %}{{- '<|role|>tools<|/role|>' }}{{- tools | tojson }}{{- '<|end|>\n' }}{% endif %}
    {%- for m in messages %}{{- '<|role|>' + m.role + '<|/role|>' + (m.content or '') }}
    {%- if m.tool_calls %}{{- '<|tool_call|>[' }}
    {%- for c in m.tool_calls %}{%- if not loop.first %}{{- ', ' }}{% endif %}{{- c.function | tojson }}{% endfor %}
    {{- ']' }}{% endif %}{{- '<|end|>\n' }}{% endfor %}
    {%- if add_generation_prompt %}{{- '<|role|>assistant<|/role|>' }}{% endif %}"""
    ),
    "<|role|> <|/role|> <|tool_call|> <|end|>",
    "<|end|>",
    "",
)

PHI4 = Family(
    of(
        r"""{%- for m in messages %}
    {%- if m.role == 'system' and tools %}{{- '<|system|>' + m.content + '<|tool|>' }}{{- tools | tojson }}
    {{- '<|/tool|><|end|>' }}
    {%- elif m.tool_calls %}{{- '<|assistant|><|tool_call|>[' }}
    {%- for c in m.tool_calls %}{%- if not loop.first %}{{- ', ' }}{% endif %}
    {{- '{"name": "' + c.function.name + '", "parameters": ' }}{{- c.function.arguments | tojson }}{{- '}' }}
    {%- endfor %}{{- ']<|/tool_call|><|end|>' }}
    {%- else %}{{- '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
    {%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""
    ),
    "<|system|> <|user|> <|assistant|> <|tool|> <|/tool|> <|tool_call|> <|/tool_call|> <|end|>",
    "<|end|>",
    "",
)

#: ChatML without tools: any role is taken
PLAIN = Family(
    of(
        r"""{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
    ),
    *CHATML,
)

FAMILIES = {name: one for name, one in sorted(globals().items()) if isinstance(one, Family)}
