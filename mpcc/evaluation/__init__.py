"""Scores and pictures of a trained model."""
