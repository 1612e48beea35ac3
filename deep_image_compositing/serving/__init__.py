"""A page and an interface for two photographs: ``deep-image-compositing serve``.

``server`` listens, ``app`` answers, ``jobs`` reads what is asked for, and ``pool`` hands it to
processes that do the ``work``. Only these import torch.
"""
