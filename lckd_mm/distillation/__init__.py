"""The models that training runs, for a student that learns from a teacher or from peers, and their terms."""

from .distiller import Distiller
from .finite import NonFiniteError
from .objective import Objective
from .online import OnlineDistiller
from .stored import StoredTeacher
from .teacher import FrozenTeacher
from .term import Term

__all__ = ['Distiller', 'FrozenTeacher', 'NonFiniteError', 'Objective', 'OnlineDistiller', 'StoredTeacher', 'Term']
