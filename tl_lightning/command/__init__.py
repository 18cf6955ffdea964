"""``python -m tl_lightning``: fit, validate, test and predict with one model, without a study."""
