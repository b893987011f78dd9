"""The rivals: published ways to train LoRA factors or all weights, one file each, behind the same ``method=``."""
