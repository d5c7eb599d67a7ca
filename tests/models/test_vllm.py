"""vLLM in this process agrees with transformers: log-probabilities, texts, several adapters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from smollm import PLAIN, vllm_server, write_lora

from paft_ray.config.errors import ConfigError
from paft_ray.models.generation import GREEDY, Ending, continue_texts, end_ids, finish
from paft_ray.models.load import load_adapter, load_base, load_tokenizer
from paft_ray.models.logprobs import ForwardPass, choice_logprobs
from paft_ray.models.tokenization import Encoded
from paft_ray.models.vllm import Asking, Engine, EngineOptions
from paft_ray.models.vllm_limits import Loras

# vLLM warns of torch's old names when it is imported
pytestmark = [
    pytest.mark.vllm, pytest.mark.timeout(500), pytest.mark.filterwarnings("ignore"),
]  # fmt: skip
TEXTS = [
    "The capital of France is", "The film was truly awful and boring. It feels",
    "Question: which way do I go? Answer:",
]  # fmt: skip
ANSWERS = [" Paris", " negative", " a rather long answer with many words"]
END = 2
STOP = (".", "\n")


@pytest.fixture(scope="module")
def engine(smollm: str, loras: dict[str, str]) -> Iterator[Engine]:
    yield Engine(
        EngineOptions(
            smollm, "float32", threads=2, cache_gb=0.5, max_length=128, batch_tokens=128,
            loras=Loras.of([*loras.values(), *loras.values()]),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(smollm: str) -> Any:
    return load_tokenizer(smollm)


@pytest.fixture(scope="module")
def encoded(tokenizer: Any) -> list[list[Encoded]]:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text)["input_ids"])

    return [
        [Encoded(ids(text), (*ids(answer), END), ended=True) for answer in ANSWERS]
        for text in TEXTS
    ]


@pytest.fixture(scope="module")
def model(smollm: str, loras: dict[str, str]) -> Any:
    """transformers and peft, with both adapters."""
    loaded: Any = load_base(smollm)
    for name, folder in loras.items():
        loaded = load_adapter(loaded, folder, name)
    return loaded


def logprobs(model: Any, encoded: list[list[Encoded]]) -> list[float]:
    found = choice_logprobs(model, encoded, ForwardPass("float32", 512))
    return [value for likelihoods in found for value in likelihoods.whole]


def test_each_adapter_and_the_base_have_the_log_probabilities_of_transformers(
    engine: Engine, encoded: list[list[Encoded]], model: Any, loras: dict[str, str]
) -> None:
    texts = [(e.context_ids, e.answer_ids) for answers in encoded for e in answers]
    requests = {None: None} | {name: engine.add_adapter(path) for name, path in loras.items()}
    again = engine.add_adapter(loras["plain"])
    assert len({again.lora_name, *(r.lora_name for r in requests.values() if r)}) == 3
    assert len({again.lora_int_id, *(r.lora_int_id for r in requests.values() if r)}) == 3
    found = {name: engine.answer_logprobs(texts, request) for name, request in requests.items()}
    repeated = engine.answer_logprobs(texts, again)
    assert sum(repeated, ()) == pytest.approx(sum(found["plain"], ()), abs=1e-5)
    assert [len(of) for of in found[None]] == [len(answer) for _, answer in texts]
    expected = {}
    for name in requests:
        if name is None:
            with model.disable_adapter():
                expected[name] = logprobs(model, encoded)
        else:
            model.set_adapter(name)
            expected[name] = logprobs(model, encoded)
        assert [sum(of) for of in found[name]] == pytest.approx(expected[name], abs=1e-3)
    # each of them is another model
    for one, other in ((None, "plain"), ("plain", "wide"), (None, "wide")):
        far = [abs(a - b) for a, b in zip(expected[one], expected[other], strict=True)]
        assert max(far) > 0.5


def test_greedy_texts_are_those_of_transformers_and_end_where_theirs_do(
    engine: Engine, tokenizer: Any, model: Any, loras: dict[str, str]
) -> None:
    contexts = [tokenizer(text)["input_ids"] for text in TEXTS]
    model.set_adapter("plain")
    ending = Ending((), STOP)
    with torch.inference_mode():
        expected = continue_texts(model, tokenizer, contexts, 24, ending, GREEDY)
    ends = end_ids(engine.own_ends, tokenizer, ending)
    asking = Asking(24, ends=tuple(ends), stop=STOP)
    adapter = engine.add_adapter(loras["plain"])
    written = engine.write(contexts, [asking] * 3, adapter, logprobs=True)
    found = [finish(tokenizer, torch.tensor(w.token_ids).numpy(), ends, ending) for w in written]
    assert found == expected
    for context, text in zip(contexts, written, strict=True):
        [scored] = engine.answer_logprobs([(context, text.token_ids)], adapter)
        assert text.logprobs == pytest.approx(scored, abs=1e-3)


def test_samples_follow_their_seed_and_carry_the_probabilities_they_were_drawn_with(
    engine: Engine, tokenizer: Any
) -> None:
    contexts = [tokenizer(TEXTS[0])["input_ids"]] * 3
    asking = [Asking(12, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    one, other, again = engine.write(contexts, asking, logprobs=True)
    assert one == again
    assert one.token_ids != other.token_ids
    [scored] = engine.answer_logprobs([(contexts[0], one.token_ids)])
    assert one.logprobs == pytest.approx(scored, abs=1e-3)
    [cold] = engine.write(contexts[:1], [Asking(12, temperature=0.2, seed=1)], logprobs=True)
    [at_one] = engine.answer_logprobs([(contexts[0], cold.token_ids)])
    assert sum(cold.logprobs) > sum(at_one) + 1  # of the sharper distribution


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 24}, "greater than max_lora_rank"),
    ],
    ids=["dora", "copy", "rank"],
)
def test_adapter_that_cannot_be_served_is_refused_and_the_engine_goes_on(
    changes: dict[str, Any], said: str, engine: Engine, smollm: str, tmp_path: Path
) -> None:
    folder = write_lora(smollm, tmp_path / "adapter", {**PLAIN, **changes})
    with pytest.raises(ConfigError, match=said):
        engine.add_adapter(folder)
    assert len(engine.answer_logprobs([((1, 2), (3,))])[0]) == 1


def test_server_gives_the_log_probabilities_of_a_prompt_under_an_adapter(
    smollm: str, loras: dict[str, str], tokenizer: Any, model: Any, tmp_path: Path
) -> None:
    from openai import OpenAI

    with vllm_server(smollm, tmp_path / "log.txt", loras) as address:
        client = OpenAI(base_url=address, api_key="none")
        answer = client.completions.create(
            model="wide", prompt=TEXTS[0] + ANSWERS[0], echo=True, logprobs=0, max_tokens=1
        )
    [choice] = answer.choices
    assert choice.logprobs is not None
    ids = tokenizer(TEXTS[0])["input_ids"]
    more = tokenizer(ANSWERS[0])["input_ids"]
    found = choice.logprobs.token_logprobs[len(ids) : len(ids) + len(more)]  # pyright: ignore
    model.set_adapter("wide")
    expected = logprobs(model, [[Encoded(tuple(ids), tuple(more))]])
    assert sum(found) == pytest.approx(expected[0], abs=1e-3)
