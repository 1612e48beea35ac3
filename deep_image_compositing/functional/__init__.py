"""Pure tensor code; it knows nobody else in the package but the errors.

Unless a docstring says otherwise: ``image``, ``foreground``, ``background`` and colours are
(B, 3, H, W) in [0, 1], ``alpha`` and ``mask`` (B, 1, H, W) in [0, 1], ``trimap`` (B, 1, H, W) in
{0, 0.5, 1}; lengths are in pixels. Stages and settings check what users give.
"""
