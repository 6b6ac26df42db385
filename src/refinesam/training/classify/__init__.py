"""Image classification on a pretrained encoder: linear probe and finetuning."""
