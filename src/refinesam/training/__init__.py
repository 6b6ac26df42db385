"""Training: finetuning of promptable segmentation models on COCO-format data."""
