"""The page and its interface: ``app`` answers, and ``pool`` has processes do the ``work``."""
