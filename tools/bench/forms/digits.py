# The pair on the digits, with the forms of lipschitz.py.
_base_ = '../../../configs/_base_/pairs/wrn16-4_wrn10-1_digits300.py'
custom_imports = dict(imports=['tools.bench.forms.lipschitz'], allow_failed_imports=False)
