"""Takes what an LLM thought out of what it answered, and the marks of its turn.

Covered: tags (`<think>`, `[THINK]`, `<reasoning>`, ...), also where a chat template wrote the first
one, the channels of gpt-oss and Gemma, tokens between turns that a server left in the text; and
whether an answer begins with thoughts that nothing marks. Every function is linear in the text's
length.
"""

import re

_WORDS = (
    "(?:ant)?think(?:ing)?|(?:inner_?)?thoughts?|reason(?:ing)?|analysis|reflection|scratch_?pad"
    "|(?:inner_?)?monologue|chain_of_thought|cot"
)
_ATTRIBUTES = r"(?:\s{1,3}|\s[\w-]{1,20}\s?=[^<>]{0,100})?"
_TAG = re.compile(
    rf"<(/?)\s{{0,3}}(?:\w{{1,20}}:)?(?:{_WORDS}){_ATTRIBUTES}>"
    rf"|\[(/?)(?:THINK(?:ING)?|REASONING)\]|◁(/?)think▷"
    rf"|<[|｜](?:begin_of_|start_|(/|end_of_|end_))?(?:{_WORDS})[|｜]>"
    r"|<(?:\|channel>(?:thought)?|(channel)\|>)|<unused9(?:4|(5))>(?:thought)?",
    re.IGNORECASE,
)
_TURN_BEGINS = re.compile(
    r"\s*+(?:<\|im_start\|>\w{0,20}\n|<\|turn>\w{0,20}\n|<start_of_turn>model\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>"
    r"|<\|(?:start_response|begin_of_solution)\|>)",
    re.IGNORECASE,
)
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text|end_response|end_of_solution"
    r"|end_of_turn_token)\|>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>|</s>(?=\s*+\Z)",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s{0,9}(\w{1,20})[^<]{0,100}<\|message\|>")
_CONTROL = re.compile(r"<\|(?:end|return|start|channel|call)\|>")
_BARE_CHANNEL = re.compile(r"analysis(?=[A-Z])")
_BARE_FINAL = "assistantfinal"

_LOOKED_AT = 1000
"""Characters of an answer that are looked at to see whether it begins with thoughts."""
_FILLER = (
    r"\W*+(?:(?:okay|ok|alright|all right|sure|well|so|right|great|got it|hmm+|ah|first|now)\b"
    r"[\s,.!…:-]*+)*+"
)
_WRITE = (
    r"(?:write|create|craft|design|draft|make|produce|generate|compose|construct|formulate"
    r"|come up with|think of|output)\b"
)
_A_PROMPT = (
    r"\b(?:prompts?|templates?|instruction(?! (?:manual|set|sheet))"
    r"|sentence that (?:tells|asks|instructs))\b"
)
_SO_FAR = r"[^.!?\n{]{0,160}?"
"""The rest of a sentence, up to something."""
_SELF = (
    r"(?:(?:i|we)\b(?! (?:want|need|would like|ask) you)|let me\b|let['’]?s\b|need to\b|asked to\b"
    r"|(?:the|my|our) (?:task|goal|job|request) (?:is|here is|asks|says)\b)"
)
_OWN_REQUEST = re.compile(
    rf"{_FILLER}(?:{_SELF}{_SO_FAR}\b{_WRITE}{_SO_FAR}{_A_PROMPT}"
    rf"|(?:the )?user\b{_SO_FAR}\b(?:{_WRITE}|an?\b|one\b){_SO_FAR}{_A_PROMPT})",
    re.IGNORECASE,
)
_DELIBERATES = re.compile(
    rf"\W*+hmm|{_FILLER}(?:let me (?:think|see|start|begin|break|analy[sz]e|consider|try|figure)\b"
    r"|let['’]?s (?:see|start|begin|tackle|break (?:this|it)|analy[sz]e|figure)\b|wait\b"
    r"|i (?:need|have) to (?:figure|think|understand|consider)\b"
    r"|(?:here(?:['’]s| is) (?:a|my|the) )?(?:thinking|thought) process\b"
    r"|(?:understand|analy[sz]e|analy[sz]ing) the (?:request|prompt|task)\b)",
    re.IGNORECASE,
)
_ABOUT_PROMPTS = re.compile(
    r"\b(?:the (?:prompt|template|placeholder)s?|prompt template|placeholders?|curly braces"
    r"|in braces|analy[sz]e the request|(?:an?|one|my) (?:\w+ )?(?:prompt|template|instruction))\b",
    re.IGNORECASE,
)


def thinks_aloud(text: str) -> bool:
    """Return whether an answer begins with thoughts about its own request that nothing marks.

    Where they end cannot be known. "The user wants to know how this sounds: {review}" is a prompt,
    "The user wants me to write a template" is none.
    """
    start = text[:_LOOKED_AT]
    if _OWN_REQUEST.match(start):
        return True
    begins = _DELIBERATES.match(start)
    return begins is not None and _ABOUT_PROMPTS.search(start, begins.start()) is not None


def without_reasoning(text: str) -> str | None:
    """An answer without its reasoning; None where the reasoning never ended.

    A tag that closes without one that opens ends reasoning that began before the text.
    """
    said = _said(text)
    if said is None:
        return None
    begin, end = _TURN_BEGINS.match(said), _TURN_ENDS.search(said)
    return said[begin.end() if begin else 0 : end.start() if end else len(said)]


def _said(text: str) -> str | None:
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
