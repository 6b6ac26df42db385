"""What the built-in weights were trained on (train splits, nothing of validation splits), and what they weren't."""

from __future__ import annotations

FIRST_TWELVE = (
    *("dsb2018", "coco_mini_cc", "coco_person_cc", "feral_cats", "mushrooms", "embryos", "facades", "teachers"),
    *("bottles", "seedlings", "emps", "nanoparticles"),
)
TEN_MORE = (
    *("davis16val", "harddrive_parts", "jenga", "nuts_figs", "eggs", "pills", "shrimp", "turtles", "boxes"),
    "powder_sem",
)
NEVER_TRAINED_ON = (
    *("coco_mini_nc", "bsds500", "fashion_ccp", "coelho_nuclei", "wbc", "vnc_em", "monuseg", "brain_mri", "busi"),
)
