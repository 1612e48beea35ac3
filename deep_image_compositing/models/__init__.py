"""The stages as plain ``nn.Module``s without Lightning, as the compositor runs them.

``deep_image_compositing.stages`` has the same ones as LightningModules, for training.
"""
