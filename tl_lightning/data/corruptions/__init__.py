"""Image corruptions after Hendrycks and Dietterich 2019, one family a file; see :mod:`tl_lightning.data.shifts`."""
