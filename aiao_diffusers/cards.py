"""Kept for code written for 0.1: see `publishing.cards`."""

from .publishing.cards import Card, CardFields, commitment, eval_results_yaml, finetune_report, marked_model


__all__ = ["Card", "CardFields", "commitment", "eval_results_yaml", "finetune_report", "marked_model"]
