"""A study: trials, records, paired comparison, figures, report."""
