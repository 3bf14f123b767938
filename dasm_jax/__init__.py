"""Dataset distillation by difficulty-aligned sequential matching (DASM)."""

__version__ = "0.1.0"
