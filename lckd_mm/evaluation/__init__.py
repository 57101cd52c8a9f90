"""Evaluation of trained nets: metrics, dumps of predictions, pictures."""
