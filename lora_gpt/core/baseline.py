"""A linear model on counted words and characters: what must be beaten before a network is worth it.

Fitted on the training part, measured on the test part of the same split. Knows nothing of networks.
"""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.svm import LinearSVC

from lora_gpt.core.evaluation import Metrics, measure
from lora_gpt.core.split import Split


def linear_baseline(split: Split, seed: int) -> Metrics:
    """Fit on `split.train`, measure on `split.test`.

    A support vector machine gives a margin, not a probability: p_spam is the margin squashed to
    0..1 with 0.5 at the border, in the right order but not calibrated, so there is no loss.
    """
    model = _model(seed)
    model.fit([each.text for each in split.train], [each.is_spam for each in split.train])
    margins = model.decision_function([each.text for each in split.test])
    return measure(split.test, 1 / (1 + np.exp(-margins)))


def _model(seed: int) -> Pipeline:
    """TF-IDF of words (1 and 2) and of characters within words (2 to 5), then a linear SVM."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return make_pipeline(make_union(words, characters), LinearSVC(random_state=seed))
