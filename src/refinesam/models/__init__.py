"""Promptable segmentation models: EfficientSAM as released, Segment Anything, and our hybrid."""
