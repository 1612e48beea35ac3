"""The command ``benchmark``. Compare ratios within one run; seconds depend on the machine."""
