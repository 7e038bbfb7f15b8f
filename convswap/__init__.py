"""Rewrite the convolutions of a trained model."""
