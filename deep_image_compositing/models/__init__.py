"""Every segmenter, refiner and fuser as a plain ``nn.Module``, without Lightning.

The compositor makes these; ``deep_image_compositing.stages`` has the same ones as LightningModules.
"""
