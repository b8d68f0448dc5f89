#!/usr/bin/env python3
"""Writes chat_cases.jsonl: chat templates, messages, and what Jinja makes of them in transformers' environment.

usage: make_chat_cases.py        needs `pip install jinja2` (which torch brings)

The templates are written for these tests in the constructs and formats of the common ones. A case without "expected"
raises: in Jinja too where "raises" is true, else only here, where it uses what the subset leaves out.
"""

import json
import pathlib

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou answer.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama3": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "llama31": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}

{#- The system message is taken out. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools") }}
    {%- elif message.content is mapping or message.content is iterable %}
        {{- message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("user and assistant must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("unknown role: " + message["role"]) }}
    {%- endif %}
{%- endfor %}
""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "dbrx": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% elif 'system' not in messages[0]['role'] %}{% set loop_messages = messages %}{% set system_message = 'You are careful.' %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if loop.index0 == 0 %}{% if system_message != false %}{{ '<|im_start|>system\\n' + system_message | trim + '<|im_end|>\\n'}}{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{% else %}{{ '\\n' + '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{% endif %}{% if (add_generation_prompt == true and loop.last) %}{{ '\\n' + '<|im_start|>' + 'assistant' + '\\n' }}{% endif %}{% endfor %}""",
    "tulu": """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] }}
{% elif message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>
' }}
{% endif %}
{% endfor %}
""",
    "qwen3": """{%- if tools %}
    {{- raise_exception('no tools') }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    # What the language does with white space, scopes, operators and values.
    "space": "a  {%- if true -%}  b  {%- endif +%}\n  {% if true %}\n  c\n  {% endif %}\n\t{#- gone -#}  d {# too #}\n  {%+ if true %} e{% endif %}\n\n",
    "scopes": "{% set x = 'out' %}{% for m in messages %}{% set x = m.role %}{{ x }};{% endfor %}{{ x }}{% if true %}{% set x = 'if' %}{% endif %}{{ x }}{% for m in [] %}{% else %}none{% endfor %}{{ loop is defined }}",
    "loops": "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.previtem.role if not loop.first else '-' }} {{ loop.nextitem is undefined }}\n{% endfor %}{% for k, v in messages[0].items() %}{{ k ~ '=' ~ v }},{% endfor %}{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}",
    "values": "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 + 3 * 4 - 1 }} {{ none }} {{ true }} {{ 1 == true }} {{ 'a' < 'b' }} {{ 'b' in 'abc' }} {{ 1 not in [2, 3] }} {{ nothing }}|{{ nothing | default('d') }} {{ '' | default('e', true) }} {{ [1, 2, 3][-1] }} {{ 'äöü'[::-1] }} {{ 'abcd'[1:3] }} {{ messages | length }} {{ {'a': [1, none, true, 'x\"\\n']} | tojson }} {{ ['a', 'b'] | join('-') }} {{ 'x' if false }}{{ 'a' ~ 1 ~ none }} {{ ('a' or 'b') and 'c' }} {{ not '' }} {{ 4 is even }} {{ 4 is divisibleby 2 }} {{ 'a' is in ['a'] }} {{ 'q' is equalto 'q' }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ ((messages | rejectattr('role', 'equalto', 'user') | list + messages) | first).role }} {{ 'a-b-c'.split('-', 1)[1] }} {{ 'aXb'.replace('X', 'yy') | upper }} {{ messages[0].get('name', 'anon') }} {{ 'A' 'B' }}",
    "characters": "{{ 'äöüß'[1::2] }} {{ 'äöüß'[::-1] }} {{ 'äöüß'[-3:-1] }} {{ 'äö'[-1] }}{{ 'äö'[1] }}{{ 'äö'[0] }} [{{ 'ab'[5:] }}] [{{ 'ab'[1:0] }}] [{{ ''[:3] }}] {{ 'äöüß€x'[4:1:-2] }} {{ 'ää€xää'.strip('äé') }} {{ '€a€'.lstrip('€') }} {{ '\u2028a\u3000'.rstrip() }} {{ 'äöü€' | length }} {{ 'äö€' | first }}{{ 'äö€' | last }} {{ '' | first is defined }} {{ 'äö' | list | join('-') }} {% for c in '€ä' %}<{{ c }}>{% endfor %} {{ 'aä€bä€c'.split('ä€') | join(',') }} {{ 'äää'.replace('ä', 'öö') }} {{ {'a': 1, 'b': [2]} | length }} {{ {'a': 1, 'b': 2} | first }}{{ {'a': 1, 'b': 2} | last }} {{ [{'a': [], 'b': {}}, 'ä\"', none, [1, [2, [3]]]] | tojson }} {{ [] | tojson }} {{ messages[0] | tojson }} {{ [7, 8, 9][-3:5:2] | tojson }} {{ 'ö' in 'äöü' }} {{ '' in 'a' }}",
    "trim": "[{{ '\u00a0 \u3000x\\t\\n' | trim }}][{{ 'xxaxx'.strip('x') }}][{{ '  a '.lstrip() }}][{{ ' a  '.rstrip() }}]",
    "newlines": "a\r\n{% if true %}\r\nb\r{% endif %}\nc\n\n",
}
USER, ANSWER = {"role": "user", "content": "  Hi, \u00fc \"you\"!\n"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello.  "}
MORE = {"role": "user", "content": "{{ 1 + 1 }} {% if %}"}
SYSTEM = {"role": "system", "content": " Be kind. "}
MESSAGES = [[USER], [SYSTEM, USER], [USER, ANSWER, MORE], [SYSTEM, USER, ANSWER, MORE], [USER, MORE], [ANSWER, USER]]
# Refused here, whatever Jinja says.
REFUSED = {
    "macro": "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1) }}",
    "include": "{% include 'x' %}",
    "filter": "{{ messages | sort }}",
    "unknown function": "{{ cycler('a') }}",
    "fraction": "{{ 1 / 2 }}",
    "real": "{{ 1.5 }}",
    "method": "{{ 'a'.center(5) }}",
    "list as text": "{{ messages }}",
    "generation": "{% generation %}x{% endgeneration %}",
    "set block": "{% set x %}a{% endset %}{{ x }}",
    "attribute of text": "{{ 'abc'.upper }}",
    "indent": "{{ messages | tojson(indent=4) }}",
    "tuple": "{{ (1, 2)[0] }}",
    "chain": "{{ 1 < 2 < 3 }}",
    "escape": "{{ '\\x41' }}",
    "break": "{% for m in messages %}{% break %}{% endfor %}",
}
RAISES = {
    "undefined attribute": "{{ nothing.role }}",
    "text and number": "{{ 'a' + 1 }}",
    "no end": "{% if true %}a",
    "no tag end": "{{ messages[0]",
    "bracket": "{{ messages[0) }}",
    "exception": "{{ raise_exception('refused') }}",
    "empty": "{{ }}",
    "none": "{% for x in none %}{% endfor %}",
    "order": "{{ 'a' < 1 }}",
}


class Refused(Exception):
    pass


def raise_exception(text):
    raise Refused(text)


def render(template: str, messages: list) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=True, **TOKENS
    )


def cases():
    for name, template in TEMPLATES.items():
        for i, messages in enumerate(MESSAGES):
            case = {"name": f"{name} {i}", "template": template, "messages": messages}
            try:
                case["expected"] = render(template, messages)
            except Refused:
                case["raises"] = True
            yield case
    for name, template in REFUSED.items():
        yield {"name": name, "template": template, "messages": [USER], "raises": False}
    for name, template in RAISES.items():
        try:
            text = render(template, [USER])
            raise SystemExit(f"{name}: {text!r} is no error")
        except (Refused, jinja2.TemplateError, TypeError):
            yield {"name": name, "template": template, "messages": [USER], "raises": True}


def main():
    lines = [json.dumps(case) for case in cases()]
    texts = sum("expected" in json.loads(line) for line in lines)
    (HERE / "chat_cases.jsonl").write_text("\n".join(lines) + "\n")
    print(len(lines), "cases,", texts, "with a text")


if __name__ == "__main__":
    main()
