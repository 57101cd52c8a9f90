"""Evaluation of trained nets: metrics, dumps of predictions, Lipschitz constants, pictures."""
