"""A student that learns from a teacher, or from its peers: the models that training sees, and their terms."""

from .distiller import Distiller
from .finite import NonFiniteError
from .objective import Objective
from .online import OnlineDistiller
from .teacher import FrozenTeacher
from .term import Term

__all__ = ['Distiller', 'FrozenTeacher', 'NonFiniteError', 'Objective', 'OnlineDistiller', 'Term']
