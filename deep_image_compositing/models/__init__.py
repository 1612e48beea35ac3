"""What runs: every segmenter, refiner and fuser as a plain ``nn.Module``, without Lightning.

The compositor makes these, so that a photograph waits for no trainer and no metrics. The stages in
``deep_image_compositing.stages`` are the same models as LightningModules, for whoever trains,
measures or saves checkpoints of them.
"""
