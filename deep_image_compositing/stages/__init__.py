"""The models of ``deep_image_compositing.models`` as LightningModules, to train and to measure."""
