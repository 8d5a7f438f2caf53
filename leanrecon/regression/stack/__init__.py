"""The regressor ``stack``: predictions of several regressors, combined by weights that their out-of-fold errors give."""
