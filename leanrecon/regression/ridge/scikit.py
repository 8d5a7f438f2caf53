"""The regressor as users import it: scikit-learn's own base class, so that all of its tools know it.

Studies use the class below it and load no scikit-learn.
"""

from sklearn.base import BaseEstimator, RegressorMixin

from leanrecon.regression.ridge import ridge


class StreamingRidge(ridge.StreamingRidge, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    __doc__ = ridge.StreamingRidge.__doc__
