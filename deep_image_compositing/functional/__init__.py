"""Pure tensor code that depends on nothing else in the package but errors and extras.

Unless a docstring says otherwise, images, composites and colours are (B, 3, H, W) and ``alpha`` and
``mask`` (B, 1, H, W) in [0, 1], ``trimap`` is (B, 1, H, W) in {0, 0.5, 1}, lengths are in pixels.
"""
