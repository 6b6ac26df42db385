"""Evaluation: COCO-format data, prompts by protocol, clicks, average precision, proposals, reports."""
