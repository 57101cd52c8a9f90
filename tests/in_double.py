"""Imported by a config: the nets are made in float64, and images follow with their mean and std."""

import torch

torch.set_default_dtype(torch.float64)
