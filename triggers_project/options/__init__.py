"""The settings that an operator gives through environment variables.

`declarations.py` has one declaration for each; its values are read (`reading.py`) and become Django settings of the
same name.  The documentation and the messages about wrong values come from the declarations, too.
"""

from triggers_project.options.option import Option
from triggers_project.options.reading import OPTIONS, read_local_env, read_options

__all__ = ["OPTIONS", "Option", "read_local_env", "read_options"]
