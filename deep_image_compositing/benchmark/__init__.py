"""The command ``benchmark``: the pipeline, the path of training data, training steps.

Everything is measured in one run on one machine, so the ratios, not the seconds, are what can be
compared. How long things take is never a test.
"""
