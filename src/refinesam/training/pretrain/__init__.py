"""Pretraining an image encoder from images alone: SAMI and MAE."""
