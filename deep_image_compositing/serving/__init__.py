"""A page and an interface for two photographs: ``deep-image-compositing serve``.

``server`` listens, ``app`` answers, ``gate`` says to whom, ``jobs`` reads what is asked for, and
``pool`` hands it to processes that do the ``work``. Only these import torch.
"""
