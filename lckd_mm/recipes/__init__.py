"""Recipes: from a student's config and a teacher to a distillation config, complete and commented."""

from .choose import RECIPES
from .start import default_work_dir, distillation_config, start

__all__ = ['RECIPES', 'default_work_dir', 'distillation_config', 'start']
