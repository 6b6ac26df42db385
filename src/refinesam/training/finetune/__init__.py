"""Finetuning: images with masks, simulated prompts, SAM's losses."""
