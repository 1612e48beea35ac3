"""The command ``benchmark``. Ratios within one run can be compared, seconds cannot."""
