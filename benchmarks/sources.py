"""What the built-in weights were trained on."""

from __future__ import annotations

# Whose train splits; nothing of their validation splits.
TRAINED_ON = (
    *("dsb2018", "coco_mini_cc", "coco_person_cc", "feral_cats", "mushrooms", "embryos", "facades", "teachers"),
    *("bottles", "seedlings", "emps", "nanoparticles"),
)
