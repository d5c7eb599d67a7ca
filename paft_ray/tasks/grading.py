"""Reads generated text: the answer in it, as grading compares it."""

import re
import unicodedata


def extract_answer(text: str, pattern: str | None) -> str:
    """The answer in a generated text: the last match of `pattern`, a number in its shortest form.

    `1,250.00` and `1250` are the same answer. Without a match, it is empty. Without a pattern, it
    is the whole text, stripped of surrounding blanks and case-folded.
    """
    if pattern is None:
        return unicodedata.normalize("NFC", text.strip().casefold())
    found = [match.group(match.lastindex or 0) for match in re.finditer(pattern, text)]
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", found[-1]).strip().rstrip(".,") if found else ""
    is_decimal = re.fullmatch(r"-?\d+\.\d+", answer)
    return answer.rstrip("0").rstrip(".") if is_decimal else answer
