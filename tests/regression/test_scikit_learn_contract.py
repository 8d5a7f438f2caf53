"""StreamingRidge is an estimator as scikit-learn understands it."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from leanrecon.regression.ridge import StreamingRidge

pytestmark = [
    pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning"),
    pytest.mark.filterwarnings("ignore:.*does not inherit from.*BaseEstimator.*:UserWarning"),
]


@parametrize_with_checks(
    [StreamingRidge(), StreamingRidge(alpha="loo"), StreamingRidge(standardize=True, restandardize="inductive")]
)
def test_scikit_learn_check(estimator, check):
    check(estimator)
