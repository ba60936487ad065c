"""Extract the answer from the output of a reasoning model, whose reasoning comes first, between marks of its chat template.

A server that runs without a reasoning parser returns both in one text. Chat templates that open the reasoning themselves leave only its
closing mark. Reasoning without an end was cut off by the token limit, and there is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAME = (
    r"(?:[a-z]{1,8}:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|rationale|scratchpad|chain_of_thought|cot"
    r"|inner_monologue)"
)
_OPENING = (
    rf"<\s{{0,4}}{_NAME}(?:\s[^<>]{{0,80}})?(?<!/)>",  # DeepSeek-R1, Qwen3, GLM-4V, Granite, Keye, Seed-OSS
    r"\[\s{0,4}(?:think|thinking|reasoning)\s{0,4}\]",  # Magistral
    r"◁\s*think\s*▷",  # Kimi-VL
    rf"<\|(?:begin_of_|start_of_|begin_|start_)?{_NAME}(?:_start|_begin)?\|>",  # Sky-T1, Command A
    r"<\|channel\|>\s*(?:analysis|commentary)\b[^<]{0,80}(?:<\|message\|>)?",  # GPT-OSS
    r"<\|channel>\s*thought\b|<unused94>\s*thought\b",  # Gemma
    r"\A\s*analysis(?=.*assistantfinal)",  # GPT-OSS, decoded without its special tokens
    r"\A\s*here (?:is|are) my (?:thought process|reasoning steps):",  # Granite 3.2, Apriel
)
_CLOSING = (
    rf"<\s*/\s{{0,4}}{_NAME}\s*>",
    r"\[\s{0,4}/\s{0,4}(?:think|thinking|reasoning)\s{0,4}\]",
    r"◁\s*/\s*think\s*▷",
    rf"<\|(?:/|end_of_|end_){_NAME}\|>|<\|{_NAME}_end\|>",
    r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*final\b[^<]{0,80}<\|message\|>",
    r"<channel\|>|<unused95>",
    r"assistantfinal",
    r"^[ \t]{0,8}here is my response:|\[begin final response\]",
)
REASONING_MARK = rf"{_OPENING[0]}|{_CLOSING[0]}|\[/?think\]|◁/?think▷"
"""A regular expression of marks that training texts may not contain, besides `<|...|>`."""
_REASONING = re.compile(f"(?P<open>{'|'.join(_OPENING)})|(?P<close>{'|'.join(_CLOSING)})", re.IGNORECASE | re.DOTALL | re.MULTILINE)

_ANSWER = r"(?:final[_ ]?)?answer|final|response|conclusion|solution"
ANSWER_MARK = rf"<\s{{0,4}}/?\s{{0,4}}(?:{_ANSWER})\s{{0,4}}>"
_WRAPPER = re.compile(
    rf"(?P<open><\s{{0,4}}(?:{_ANSWER})\s{{0,4}}>|\[\s*answer\s*\]|<\|begin_of_(?:box|solution|answer)\|>|<\|start_response\|>)"
    rf"|(?P<close><\s{{0,4}}/\s{{0,4}}(?:{_ANSWER})\s{{0,4}}>|\[\s*/\s*answer\s*\]|<\|end_of_(?:box|solution|answer)\|>|<\|end_response\|>"
    rf"|\[end final response\])",
    re.IGNORECASE,
)
_MAX_NESTED = 4
_END = re.compile(r"(?:(?:<\|(?:return|end|im_end|eot_id|endoftext|end_of_text)\|>|<turn\|>|<end_of_turn>|</s>)\s*)+\Z", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LATEX = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")


def without_reasoning(text: str) -> str | None:
    """`text` without its reasoning; None if that has no end, so that there is no answer."""
    kept: list[str] = []
    inside, start = False, 0
    for mark in _REASONING.finditer(text):
        if mark["close"]:
            kept = kept if inside else []  # a template opened it: everything before is reasoning
            inside, start = False, mark.end()
        elif not inside:
            kept.append(text[start : mark.start()])
            inside = True
    if inside:
        return None
    return text if not start else "\n".join(part for part in (*map(str.strip, kept), text[start:].strip()) if part)


def whole_text(text: str) -> str | None:
    """`text` without its reasoning and without a pair of tags around all of it; None as in `without_reasoning`."""
    answer = without_reasoning(text)
    marks = [] if answer is None else list(_WRAPPER.finditer(answer))
    if answer is None or len(marks) != 2 or not marks[0]["open"] or answer[: marks[0].start()].strip() or answer[marks[1].end() :].strip():
        return answer
    return answer[marks[0].end() : marks[1].start()].strip()


def final_text(text: str) -> str:
    """The answer without its reasoning and the tags that wrap it (`<answer>`); empty if there is no answer."""
    answer = _END.sub("", without_reasoning(text) or "")
    for _ in range(_MAX_NESTED):
        if not _WRAPPER.search(answer):
            break
        answer = "\n".join(_distinct(_wrapped(answer)))
    return answer


def final_answer(text: str) -> str:
    r"""The short answer: like `final_text`, but only the content of a box (`\boxed{B}`), if there is one."""
    answer = final_text(text)
    boxed = _distinct(_boxed(answer))
    return "\n".join(boxed) if boxed else answer


def _distinct(parts: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(part for part in map(str.strip, parts) if part))


def _wrapped(text: str) -> Iterator[str]:
    """The text between the tags: to the end if the closing tag is missing, from the start if the opening one is."""
    inside, start, found = False, 0, False
    for mark in _WRAPPER.finditer(text):
        if mark["open"]:
            inside, start = True, mark.end()
        elif inside or not found:
            yield text[start : mark.start()]
            inside, found = False, True
    if inside:
        yield text[start:]


def _boxed(text: str) -> Iterator[str]:
    box = _BOX.search(text)
    while box:
        depth, end = 1, box.end()
        while end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                break
            end += 1
        content = text[box.end() : end]
        for _ in range(_MAX_NESTED):
            content = _LATEX.sub(r"\1", content)
        yield content
        box = _BOX.search(text, end)
