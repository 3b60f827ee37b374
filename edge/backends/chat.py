"""Chat templates, rendered alike for every backend, in jinja2's sandbox: they come with the base model.

The environment is that of transformers' `apply_chat_template`, which published templates are written for:
the same options, extensions, filters and functions. One thing differs, so that the same data gives the same
tokens tomorrow, and a checkpoint can be resumed: the date of today, which some templates write into the
system turn (Llama 3, SmolLM3, gpt-oss), is always the one that Llama's falls back to.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any

from edge.errors import DataError

TODAY = date(2024, 7, 26)
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a turn's thoughts, templates' own first
Message = Mapping[str, Any]


class ChatTemplate:
    """A template, compiled when it is first rendered.

    Args:
        source: In jinja2's language.
        special_tokens: Their texts by the names that templates use: `bos_token` and the like.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source, self._special_tokens = source, special_tokens

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None, add_generation_prompt: bool
    ) -> str:
        """Renders `messages` by the template.

        Raises:
            DataError: The template refuses them, or fails on them.
        """
        try:
            return self._render(
                messages=[_plain_message(message) for message in messages],
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # a program of somebody else's: anything may come out of it
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DataError(
                f"the base model's chat template does not take these messages: {reason}"
            ) from error

    @cached_property
    def _render(self) -> Callable[..., str]:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):  # type: ignore[misc]
            """`{% generation %}`, which marks what an assistant writes, and writes nothing itself."""

            tags = {"generation"}  # noqa: RUF012 - jinja2's way

            def parse(self, parser: Parser) -> list[nodes.Node]:
                next(parser.stream)
                body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return body

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": refuse, "strftime_now": TODAY.strftime}
        render: Callable[..., str] = environment.from_string(self._source).render
        return render


def _plain_message(message: Message) -> dict[str, Any]:
    plain = {name: value for name, value in message.items() if value is not None}
    thoughts = next((plain[name] for name in REASONING if name in plain), None)
    if thoughts is None:
        return plain
    return {"thinking": thoughts, **plain, "reasoning_content": thoughts}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own writes < and > as it must in a web page, and sorts.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
