"""Takes what an LLM thought out of what it answered.

Covered: tags (`<think>`, `[THINK]`, `<reasoning>`, ...), also where a chat template wrote the first
one, and the channels of gpt-oss. Every function is linear in the text's length.
"""

import re

_WORDS = "think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad"
_TAG = re.compile(
    rf"<(/?)(?:\w{{1,20}}:)?(?:{_WORDS})>|\[(/?)(?:THINK(?:ING)?|REASONING)\]|◁(/?)think▷"
    rf"|<\|(?:begin_of_|start_|(/|end_of_|end_))?(?:{_WORDS})\|>",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s{0,9}(\w{1,20})[^<]{0,100}<\|message\|>")
_CONTROL = re.compile(r"<\|(?:end|return|start|channel|call)\|>")
_BARE_CHANNEL = re.compile(r"analysis(?=[A-Z])")
_BARE_FINAL = "assistantfinal"


def without_reasoning(text: str) -> str | None:
    """An answer without its reasoning; None where the reasoning never ended.

    A tag that closes without one that opens ends reasoning that began before the text.
    """
    if "<|channel|>" in text:
        return _final_channel(text)
    if _BARE_CHANNEL.match(text):  # channels whose marks a server took out
        _, found, final = text.rpartition(_BARE_FINAL)
        return final if found else None
    kept, depth, behind = [], 0, 0
    for tag in _TAG.finditer(text):
        closes = _closes(tag)
        if not depth and not closes:
            kept.append(text[behind : tag.start()])
        if not depth and closes:
            kept = []
        depth = max(0, depth - 1) if closes else depth + 1
        behind = tag.end()
    return None if depth else "".join([*kept, text[behind:]])


def _closes(tag: re.Match[str]) -> bool:
    return any(group and not group.lower().startswith("start") for group in tag.groups())


def _final_channel(text: str) -> str | None:
    final = None
    for channel in _CHANNEL.finditer(text):
        final = channel if channel[1].lower() == "final" else None
    if final is None:
        return None
    end = _CONTROL.search(text, final.end())
    return text[final.end() : end.start() if end else len(text)]
