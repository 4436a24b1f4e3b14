#!/usr/bin/env python3
"""Makes golden/chat.json: conversations as Jinja renders them with checkpoints' chat templates.

    make_chat.py OUT.json

Needs transformers from PyPI (its renderer is the one that the templates are written for). Each entry:
  name, bos, eos, jinja
  published: false where no checkpoint carries this source: vicuna (written from FastChat's documented format),
             alpaca (from Stanford Alpaca's prompt), plain (OQ's own)
  renders: [{messages, open_answer, text}]
"""

import json
import sys

from transformers.utils.chat_template_utils import render_jinja_template

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are"
    " a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' +"
    " message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n' }}{% endif %}")

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are"
    " a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message ="
    " messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message +"
    " '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' +"
    " message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

# The path that LLaMA-3.1's template takes when there are no tools.
LLAMA31 = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = \"26 Jul 2024\" %}\n{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n"
    "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n{{- \"Cutting Knowledge Date: December 2023\\n\" }}\n"
    "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}\n{{- system_message }}\n{{- \"<|eot_id|>\" }}\n"
    "{%- for message in messages %}\n    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+"
    " message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n")

ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")

# Mistral-7B-Instruct-v0.1 as first published.
MISTRAL01 = MISTRAL.replace("message['content'] + eos_token}}", "message['content'] + eos_token + ' ' }}")

# The revision of 2024 of v0.1, v0.2 and Mixtral.
MISTRAL_SPACED = (
    "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set system_message = messages[0][\"content\"] %}\n"
    "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n\n"
    "{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "        {{- raise_exception('After the optional system message, conversation roles must alternate"
    " user/assistant/user/assistant/...') }}\n    {%- endif %}\n    {%- if message[\"role\"] == \"user\" %}\n"
    "        {%- if loop.first and system_message is defined %}\n"
    "            {{- \" [INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \" [/INST]\" }}\n        {%- else %}\n"
    "            {{- \" [INST] \" + message[\"content\"] + \" [/INST]\" }}\n        {%- endif %}\n"
    "    {%- elif message[\"role\"] == \"assistant\" %}\n        {{- \" \" + message[\"content\"] + eos_token}}\n    {%- else %}\n"
    "        {{- raise_exception('Only user and assistant roles are supported, with the exception of an initial optional"
    " system message!') }}\n    {%- endif %}\n{%- endfor %}\n")

# The path that Mistral-7B-Instruct-v0.3's template takes when there are no tools.
MISTRAL03 = (
    "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set system_message = messages[0][\"content\"] %}\n"
    "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
    "{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if message[\"role\"] == \"user\" %}\n"
    "        {%- if loop.last and system_message is defined %}\n"
    "            {{- \"[INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n        {%- else %}\n"
    "            {{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}\n        {%- endif %}\n"
    "    {%- elif message[\"role\"] == \"assistant\" %}\n        {{- \" \" + message[\"content\"]|trim + eos_token}}\n"
    "    {%- endif %}\n{%- endfor %}\n")

# The path that Qwen2.5's template takes when there are no tools.
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n'"
    " }}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not"
    " loop.first) or (message.role == \"assistant\" and not message.tool_calls) %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n")

FALCON = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message ="
    " messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 %}{{ system_message.strip() }}{% endif %}{% if message['role'] == 'user' %}{{ '\\n\\nUser: ' +"
    " message['content'].strip().replace('\\r\\n', '\\n').replace('\\n\\n', '\\n') }}{% elif message['role'] == 'assistant' %}"
    "{{ '\\n\\nAssistant: ' + message['content'].strip().replace('\\r\\n', '\\n').replace('\\n\\n', '\\n') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}")

VICUNA = (
    "{% if messages[0].role != 'system' %}{{ \"A chat between a curious user and an artificial intelligence assistant. The"
    " assistant gives helpful, detailed, and polite answers to the user's questions. \" }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user' %}"
    "{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")

ALPACA = (
    "{% if messages[0].role != 'system' %}{{ 'Below is an instruction that describes a task. Write a response that"
    " appropriately completes the request.\\n\\n' }}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '### Instruction:\\n' }}{% elif m.role == 'assistant' %}{{ '### Response:\\n' }}{% endif %}"
    "{{ m.content + '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}")

PLAIN = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}{% else %}"
    "{{ m.role.capitalize() + ': ' + m.content + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")

# What system messages a template has a place for: none, one before a single question, or any.
NONE, SINGLE, ANY = range(3)

TEMPLATES = [
    ("smollm", SMOLLM, "<|im_start|>", "<|im_end|>", ANY),
    ("chatml", CHATML, "<s>", "<|im_end|>", ANY),
    ("qwen2", QWEN2, "", "<|im_end|>", ANY),
    ("qwen2.5", QWEN25, "", "<|im_end|>", ANY),
    ("llama2", LLAMA2, "<s>", "</s>", ANY),
    ("llama3", LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", ANY),
    ("llama3.1", LLAMA31, "<|begin_of_text|>", "<|eot_id|>", ANY),
    ("zephyr", ZEPHYR, "<s>", "</s>", ANY),
    ("mistral", MISTRAL, "<s>", "</s>", NONE),
    ("mistral-v0.1", MISTRAL01, "<s>", "</s>", NONE),
    ("mistral-spaced", MISTRAL_SPACED, "<s>", "</s>", ANY),
    ("mistral-v0.3", MISTRAL03, "<s>", "</s>", SINGLE),  # it moves the system message from turn to turn
    ("falcon", FALCON, "", "<|endoftext|>", ANY),
    ("vicuna", VICUNA, "<s>", "</s>", ANY),
    ("alpaca", ALPACA, "<s>", "</s>", ANY),
    ("plain", PLAIN, "", "", ANY),
]
UNPUBLISHED = {"vicuna", "alpaca", "plain"}

USER = {"role": "user", "content": "What is 2 + 2?"}
ANSWER = {"role": "assistant", "content": "It is 4.\n\nAnything else?"}
MORE = {"role": "user", "content": "  Spaces around, <|im_end|> and </s> within \n"}
LINES = {"role": "user", "content": "One\r\ntwo\r\n\r\nthree\n\n\nfour\n\n\n\nfive"}
LATER = {"role": "assistant", "content": " Fine. "}
SYSTEM = {"role": "system", "content": "Be terse.\nAlways. "}

CONVERSATIONS = [
    [USER], [USER, ANSWER], [USER, ANSWER, MORE], [USER, ANSWER, MORE, LATER], [MORE],
    [LINES, LATER], [SYSTEM, USER], [SYSTEM, MORE, LATER, USER, ANSWER],
]


def main():
    out = []
    for name, jinja, bos, eos, system in TEMPLATES:
        renders = []
        for messages in CONVERSATIONS:
            if messages[0]["role"] == "system" and (system == NONE or system == SINGLE and len(messages) > 2):
                continue
            for open_answer in (False, True):
                text, _ = render_jinja_template(
                    conversations=[messages], chat_template=jinja, add_generation_prompt=open_answer,
                    bos_token=bos, eos_token=eos)
                renders.append({"messages": messages, "open_answer": open_answer, "text": text[0]})
        out.append({"name": name, "bos": bos, "eos": eos, "published": name not in UNPUBLISHED, "jinja": jinja,
                    "renders": renders})
    with open(sys.argv[1], "w", encoding="ascii") as f:
        json.dump(out, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
