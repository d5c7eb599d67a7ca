"""Coverage of the space of wordings by prompts: order, map and distance.

Texts are embeddings by a model that the user names, or else vectors of their character 3- to
5-grams inside words, weighted by TF-IDF; both of length one, so that distances are those of cosine.
Covered: farthest-point order (every prefix covers as well as a greedy choice can, Gonzalez 1985), a
map in two dimensions (truncated SVD), and the maximum mean discrepancy between two groups of texts
(Gretton et al. 2012), by which the paper compares held-out with training prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paft_ray.config.prompts import CoverageConfig

_NGRAMS = CoverageConfig()
_ORDERED = 4000
"""Of more texts the rest follows in the order given: each step looks at all of them."""


def vectors(texts: Sequence[str], by: CoverageConfig = _NGRAMS) -> Any:
    """Vectors as a sparse matrix of shape [texts, features], rows of length one.

    Args:
        texts: Whatever is compared.
        by: Names the model whose embeddings are taken; TF-IDF without.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    if by.path is not None:
        return csr_matrix(embed(texts, by.path, by.revision, by.trust_remote_code))
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    return vectorizer.fit_transform([text or " . " for text in texts]).tocsr()


def embed(
    texts: Sequence[str], model: str, revision: str | None = None, trust: bool = False
) -> NDArray[np.float64]:
    """Embeddings of texts, mean over tokens, of length one: shape [texts, dimensions].

    Args:
        texts: One batch of 64 after another is read, the longest first.
        model: Folder or hub name of an encoder, as sentence-transformers publishes them.
        revision: Commit or tag of a hub model.
        trust: Run the model's own Python files, if it has any.
    """
    import torch

    from paft_ray.models.pretrained import read_encoder, read_tokenizer

    tokenizer: Any = read_tokenizer(model, revision, trust)
    encoder = read_encoder(model, revision, trust)
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    found: dict[int, NDArray[np.float64]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            batch = tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, return_tensors="pt"
            )
            hidden_BTD = encoder.eval()(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"][..., None]
            mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            unit_BD = torch.nn.functional.normalize(mean_BD, dim=1).double().numpy()
            found.update(zip(chosen, unit_BD, strict=True))
    return np.array([found[index] for index in range(len(texts))])


def covering_order(texts: Sequence[str], by: CoverageConfig = _NGRAMS) -> list[int]:
    """Indices of the texts, each the farthest from all before it; a pure function of the texts.

    Distances are those of `vectors`. The first is the one nearest to the
    mean. Of equally far ones the first given comes first.
    """
    if len(texts) < 3:
        return list(range(len(texts)))
    matrix = vectors(texts, by)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    first = int(np.argmax(np.round(matrix @ mean, 9)))
    order, nearest = [first], np.full(len(texts), -np.inf)
    for _ in range(min(len(texts), _ORDERED) - 1):
        similar = np.asarray((matrix @ matrix[order[-1]].T).todense()).ravel()
        nearest = np.maximum(nearest, similar)
        nearest[order[-1]] = np.inf
        order.append(int(np.argmin(np.round(nearest, 9))))
    chosen = set(order)
    return order + [index for index in range(len(texts)) if index not in chosen]


def flat_map(texts: Sequence[str]) -> NDArray[np.float64]:
    """A map of the texts: shape [texts, 2], axes from -1 to 1; near points share n-grams."""
    from sklearn.decomposition import TruncatedSVD

    if len(texts) < 3:
        return np.zeros((len(texts), 2))
    matrix = vectors(texts)
    if min(matrix.shape) < 4:
        return np.zeros((len(texts), 2))
    # the first direction of uncentred vectors is their mean, which tells nothing apart
    points = TruncatedSVD(3, random_state=0).fit_transform(matrix)[:, 1:]
    low, high = points.min(axis=0), points.max(axis=0)
    return (2 * points - low - high) / np.maximum(high - low, 1e-12)


def discrepancy(first: Sequence[str], second: Sequence[str]) -> tuple[float, float]:
    """The squared maximum mean discrepancy of two groups of texts, and what chance would give.

    The kernel is the cosine of the vectors, the estimate the unbiased one, which may be negative.

    Returns:
        The discrepancy, and the 95% quantile of it over 200 random regroupings of the same texts.
        Both are nan where a group has fewer than two texts.
    """
    if min(len(first), len(second)) < 2:
        return float("nan"), float("nan")
    matrix = vectors([*first, *second])
    kernel = np.asarray((matrix @ matrix.T).todense())
    generator = np.random.default_rng(0)
    found = _squared_mmd(kernel, np.arange(len(kernel)), len(first))
    chance = [
        _squared_mmd(kernel, generator.permutation(len(kernel)), len(first)) for _ in range(200)
    ]
    return found, float(np.quantile(chance, 0.95))


def _squared_mmd(kernel: NDArray[np.float64], order: NDArray[np.int64], first: int) -> float:
    a, b = order[:first], order[first:]
    within_a = (kernel[np.ix_(a, a)].sum() - kernel[a, a].sum()) / (len(a) * (len(a) - 1))
    within_b = (kernel[np.ix_(b, b)].sum() - kernel[b, b].sum()) / (len(b) * (len(b) - 1))
    return float(within_a + within_b - 2 * kernel[np.ix_(a, b)].mean())
