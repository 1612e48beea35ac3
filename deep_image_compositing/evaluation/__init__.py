"""The comparison of methods: test sets, measures, the bench, its report, and the user study."""
