"""Report tower: hashed n-grams of words and characters, then a perceptron.

Hashing needs no vocabulary, so sites share none (arXiv 0902.2206). Word pairs carry negations
("no effusion"), character n-grams carry spelling, inflection and other languages.

Shape suffixes: N reports, B batch, F features, b bits.

    >>> tower = ReportNgrams(ReportNgrams.Options(), outputs=64)
    >>> outputs = tower(tower.prepare(["No pleural effusion."]))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field
from sklearn.feature_extraction.text import HashingVectorizer

from fedhash.configuration import Settings
from fedhash.models.perceptron import perceptron
from fedhash.models.tower import Tower, register_tower, text_of

__all__ = ["ReportNgrams", "ReportNgramsOptions"]


class ReportNgramsOptions(Settings):
    """Options of the tower.

    Attributes:
        word_features: Buckets for single words and pairs of words.
        character_features: Buckets for 3- and 4-grams of characters within words.
        hidden: Units of the hidden layer.
    """

    word_features: int = Field(default=2048, ge=1, le=32_768)
    character_features: int = Field(default=2048, ge=1, le=32_768)
    hidden: int = Field(default=128, ge=1, le=1024)


@register_tower
class ReportNgrams(Tower):
    """Two hashed bags of n-grams side by side, each of length 1, then a perceptron."""

    name = "report_ngrams"
    modality = "report"
    Options = ReportNgramsOptions

    def __init__(self, options: ReportNgramsOptions, outputs: int) -> None:
        super().__init__(options, outputs)
        self.vectorizers = (
            HashingVectorizer(
                n_features=options.word_features, ngram_range=(1, 2), dtype=np.float32
            ),
            HashingVectorizer(
                n_features=options.character_features,
                analyzer="char_wb",
                ngram_range=(3, 4),
                dtype=np.float32,
            ),
        )
        self.prepared_shape = (options.word_features + options.character_features,)
        self.body = perceptron(self.prepared_shape[0], options.hidden, outputs)

    def prepare(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N F"]:
        """See :meth:`Tower.prepare`; an empty report gives zeros."""
        texts = [text_of(content) for content in contents]
        bags = [vectorizer.transform(texts).toarray() for vectorizer in self.vectorizers]
        return torch.from_numpy(np.hstack(bags))

    def forward(self, prepared: Float[torch.Tensor, "B F"]) -> Float[torch.Tensor, "B b"]:
        """See :meth:`Tower.forward`."""
        outputs: torch.Tensor = self.body(prepared)
        return outputs
