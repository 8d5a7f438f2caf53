"""``StreamingRidge`` for users: with scikit-learn's base class, so that its tools accept it.

Studies use the parent class and load no scikit-learn.
"""

from sklearn.base import BaseEstimator, RegressorMixin

from leanrecon.regression.ridge import ridge


class StreamingRidge(ridge.StreamingRidge, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    __doc__ = ridge.StreamingRidge.__doc__
