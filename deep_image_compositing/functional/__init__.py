"""Pure tensor code; it knows nobody else in the package but the errors.

Unless a docstring says otherwise, images, composites and colours are (B, 3, H, W) and ``alpha`` and
``mask`` (B, 1, H, W) in [0, 1], ``trimap`` is (B, 1, H, W) in {0, 0.5, 1}, lengths are in pixels.
"""
