"""The command ``benchmark``: composites against others, cost against megapixels, training.

Everything is measured in one run on one machine, so the ratios, not the seconds, are what can be
compared. How long things take is never a test.
"""
