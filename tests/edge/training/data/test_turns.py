"""What is trained on of conversations, with templates that do what published ones do."""

import pytest

from edge.backends.chat import ChatTemplate
from edge.training.data.conversations import Conversation
from edge.training.data.faults import Unusable
from edge.training.data.turns import mark_turns

CHATML = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Llama 2, Mistral: no prompt of generation at all.
INST = """
{{- bos_token }}{% for m in messages %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

# DeepSeek-R1: the prompt of generation opens a thought, answers have lost theirs.
THINKING_PROMPT = """
{%- for m in messages %}{% if m.role == 'user' %}{{ '<U>' + m.content }}
{%- else %}{{ '<A>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<A><think>\\n' }}{% endif %}"""

# Qwen3: only the last turn has a thought, and an empty one if it has none.
LAST_THINKS = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.last and '<think>' not in m.content %}
{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endif %}
{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Phi-3: what is no prompt of generation ends with the end token.
ENDS = """
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# Mistral with tools: they stand before the last question, wherever that is.
TOOLS_LAST = """
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}{% if m.role == 'user' %}
{%- if tools and m == asked[-1] %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined %}{{ '[CALLS]' + m.tool_calls | tojson + eos_token }}
{%- elif m.role == 'tool' %}{{ '[RESULT]' + m.content + '[/RESULT]' }}
{%- else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"""

# SmolLM3, gpt-oss: the date; and marks for other trainers, loop controls.
DATED = """
{%- for m in messages %}{% if loop.first %}{{ strftime_now('%d %b %Y') + '\\n' }}{% endif %}
{%- if m.role == 'stop' %}{% break %}{% endif %}{{ '<' + m.role + '>' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<end>' }}{% endgeneration %}
{%- else %}{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""


class Rendering:
    """A tokenizer that only renders."""

    def __init__(self, source):
        self._chat = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})

    def render(self, messages, *, tools=None, add_generation_prompt):
        pytest.importorskip("jinja2", reason="needs the torch or mlx extra")
        return self._chat.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)


def turns(*texts):
    return [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]


def marked(source, messages, tools=None):
    """Each example with what is trained on in brackets."""
    examples = mark_turns(Conversation(messages, tools), Rendering(source))
    return ["".join(f"[[{text}]]" if trained else text for text, trained in pieces) for pieces in examples]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            CHATML,
            ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[[yes<|im_end|>\n]]"
             "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n[[no<|im_end|>\n]]"],
        ),
        (INST, ["<s>[INST] a [/INST][[ yes</s>]][INST] b [/INST][[ no</s>]]"]),
        (THINKING_PROMPT, ["<U>a<A>[[yes</s>]]<U>b<A>[[no</s>]]"]),
        (
            LAST_THINKS,
            [
                "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
                "[[<think>\n\n</think>\n\nyes<|im_end|>\n]]",
                "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
                "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
                "[[<think>\n\n</think>\n\nno<|im_end|>\n]]",
            ],
        ),
        (
            ENDS,
            [
                "<|user|>\na<|end|>\n<|assistant|>\n[[yes<|end|>\n</s>]]",
                "<|user|>\na<|end|>\n<|assistant|>\nyes<|end|>\n"
                "<|user|>\nb<|end|>\n<|assistant|>\n[[no<|end|>\n</s>]]",
            ],
        ),
        (DATED, ["26 Jul 2024\n<user>a<assistant>[[yes<end>]]<user>b<assistant>[[no<end>]]"]),
    ],
    ids=["chatml", "no-prompt", "thinking-prompt", "last-thinks", "ends", "dated"],
)  # fmt: skip
def test_every_answer_is_trained_on_once_after_what_would_stand_before_it(source, expected):
    assert marked(source, turns("a", "yes", "b", "no")) == expected


def test_an_answer_begins_where_its_thoughts_do_if_the_template_keeps_them():
    (text,) = marked(CHATML, turns("a", "<think>\nhm\n</think>\n\nyes"))
    assert text.endswith("<|im_start|>assistant\n[[<think>\nhm\n</think>\n\nyes<|im_end|>\n]]")
    (text,) = marked(THINKING_PROMPT, turns("a", "<think>\nhm\n</think>yes"))
    assert text == "<U>a<A>[[yes</s>]]"


def test_tool_calls_and_tools_reach_the_template_as_they_are():
    call = {"type": "function", "function": {"name": "rain", "arguments": {"city": "<Köln>"}}}
    tools = [{"type": "function", "function": {"name": "rain", "parameters": {"b": 1, "a": 2}}}]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "wet"},
        {"role": "assistant", "content": "It rains."},
    ]
    (text,) = marked(TOOLS_LAST, messages, tools)
    assert text == (
        '[TOOLS][{"type": "function", "function": {"name": "rain", "parameters": {"b": 1, "a": 2}}}][/TOOLS]'
        '[INST]a[/INST][[[CALLS][{"type": "function", "function": {"name": "rain", "arguments": '
        '{"city": "<Köln>"}}}]</s>]][RESULT]wet[/RESULT][[It rains.</s>]]'
    )
    examples = marked(TOOLS_LAST, [*messages, *turns("b", "no")], tools)
    assert [text.count("[TOOLS]") for text in examples] == [1, 1, 1]
    assert examples[2].startswith("[INST]a")  # asked later, the tools stand before the later question


@pytest.mark.parametrize(
    ("source", "messages", "reason"),
    [
        (CHATML, [*turns("a"), {"role": "assistant", "content": "", "tool_calls": [{"name": "x"}]}],
         "have tool calls that the base model's chat template leaves out"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", turns("a", "yes"),
         "have an assistant turn that the base model's chat template leaves out"),
        ("{{ raise_exception('roles must alternate') }}", turns("a", "yes"), "roles must alternate"),
        ("{{ messages[0].content + 1 }}", turns("a", "yes"), "can only concatenate str"),
        ("{{ messages[5].content.x }}", turns("a", "yes"), "does not take these messages"),
        ("{% for %}", turns("a", "yes"), "does not take these messages"),
        ("{{ messages.__class__.__mro__ }}", turns("a", "yes"), "does not take these messages"),
    ],
)  # fmt: skip
def test_a_template_that_refuses_or_leaves_out_is_told(source, messages, reason):
    with pytest.raises(Unusable, match=reason):
        marked(source, messages)


def test_published_options_are_those_of_transformers():
    """The environment is compared with the one that templates are written for."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="needs the torch extra")
    messages = [*turns("a<b>", "ü"), {"role": "user", "content": "c", "reasoning": "hm", "name": None}]
    source = (
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }} {% for m in messages %}{% if loop.last %}"
        "{% break %}{% endif %}{{ m.role }}{% endfor %}  \n  {% if x is defined %}{% endif %}\n"
        "{{ bos_token }}"
    )
    found, _ = utils.render_jinja_template([messages[:2]], chat_template=source, bos_token="<s>")
    assert Rendering(source).render(messages[:2], add_generation_prompt=False) == found[0]
