"""Evaluation: COCO-format data, prompts by protocol, metrics."""
