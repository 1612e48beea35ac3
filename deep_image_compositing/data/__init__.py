"""Training data: readers of folders, synthesis on the device, and the data modules."""
