"""Image sets, splits, domain shifts and the data module that serves them."""
