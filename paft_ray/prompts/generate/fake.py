"""An LLM without a model, for tests and dry runs: it composes prompts from word banks."""

import random
import re
import time
from collections.abc import Iterable, Iterator

from paft_ray.config import FakeLLM
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.requests import Request


class FakeClient:
    """`type: fake`: writes plausible prompts from the request alone, without a model."""

    def __init__(self, config: FakeLLM) -> None:
        """Take the configuration; there is no model to load."""
        self._config = config

    def complete(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Answer one request after another; some fail where the configuration asks for it."""
        for request in requests:
            time.sleep(self._config.seconds)
            number = int(request.id, 16)
            if self._config.fail_every and number % self._config.fail_every == 0:
                yield [Completion(request.id, None, "HTTP 500", 500, 1, self._config.seconds)]
                continue
            write = self._reword if request.strategy == "paraphrase" else self._write
            text = write(request, random.Random(number))
            words = len(text.split())
            yield [Completion(request.id, text, None, 200, 1, self._config.seconds, 50, words)]

    def _reword(self, request: Request, rng: random.Random) -> str:
        text = request.messages[-1][1].partition("Text:\n")[2]
        return f"{rng.choice(_ASIDES)}: {text}"

    def _write(self, request: Request, rng: random.Random) -> str:
        message = request.messages[-1][1]
        slots = list(dict.fromkeys(re.findall(r"\{([A-Za-z_]\w*)\}", message)))
        letters = dict(re.findall(r"\{(\w+)\} is option (\w+)", message))
        task = re.search(r"(?:The task|Task): (.+)", message)
        description = task.group(1) if task else message.splitlines()[0]
        topic = re.split(r"[,:;] ", description.rstrip("."))[-1]
        words = [rng.choice(bank) for bank in (_OPENINGS, _VERBS, _LINKS, _ENDINGS)]
        opening, verb, link, ending = words
        instruction = f"{opening} {verb} {link} {topic[:1].lower()}{topic[1:]} {ending}".strip()
        instruction = f"{instruction[:1].upper()}{instruction[1:]}."
        if not slots:
            return instruction
        separator = rng.choice(["\n", "\n\n", " | ", " "])
        style = rng.choice([str.title, str.upper, str.lower])
        fields = [
            f"{letters[slot]}. {{{slot}}}" if slot in letters else f"{style(slot)}: {{{slot}}}"
            for slot in slots
        ]
        cue = rng.choice(["Answer:", "Your answer:", "Response:", "Result:", "->"])
        return separator.join([instruction, *fields, cue])


_OPENINGS = (
    "please", "your task is to", "carefully", "as an expert,", "for this question,", "now",
    "I want you to", "without explaining anything,", "when you are ready,", "using common sense,",
    "quickly", "like a patient reader,", "honestly,", "step by step,", "before anything else,",
    "as an examiner would,", "for the record,", "in your own time,",
)  # fmt: skip
_ASIDES = ("in short", "to put it otherwise", "said in other words", "once more", "that is")
_VERBS = (
    "read what follows", "consider all that is given", "examine the material below",
    "weigh every detail", "study the input", "go through the text once", "take a close look",
    "review the case at hand", "think about what you see", "inspect the following lines",
)  # fmt: skip
_LINKS = ("and", "and then", "so that you can", "in order to", "until you can", "and finally")
_ENDINGS = (
    "", "as briefly as you can", "with confidence", "and nothing else", "for a colleague",
    "before you reply", "so that nobody has to ask again", "as a teacher would do it in class",
    "while ignoring your first impression", "in the words that were asked for",
)  # fmt: skip
