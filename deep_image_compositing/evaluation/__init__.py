"""The comparison: methods, test sets, measures, the bench and its report, the user study."""
