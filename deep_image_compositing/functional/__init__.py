"""Pure tensor code on (B, C, H, W) tensors; it knows nobody else in the package but the errors."""
