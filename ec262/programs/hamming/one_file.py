"""What a job that makes one file of another checks before it starts. Never shipped."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ec262.errors import ProgramError
from ec262.storage.inputs import FileInput


def one_file(params: Mapping[str, Any], files: FileInput | None) -> Mapping[str, Any]:
    """The parameters as they are, if the input is one file.

    Raises:
        ProgramError: several files, whose frames would get mixed up in one output; or no file at all.
    """
    if files is None:
        raise ProgramError("this program takes a file")
    found = files.found()
    if len(found) != 1:
        raise ProgramError(f"this program takes one file a job, not {len(found)}: start a job for each")
    if found[0].about.size == 0:
        # The one case that a coded file cannot tell of itself: there is no frame to say that it is the last.
        warnings.warn(f"{found[0].name} is empty, and so will be the result", stacklevel=2)
    return params
