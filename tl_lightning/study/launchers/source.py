"""Name a study so that another process can load it: the script's path and the variable in it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from tl_lightning.errors import UserError
from tl_lightning.study.design import Study


@dataclass(frozen=True)
class StudySource:
    """Where a study is defined.

    Attributes:
        path: The script, an absolute path.
        variable: Its variable that holds the study.
    """

    path: str
    variable: str

    @classmethod
    def of(cls, study: Study) -> StudySource:
        """Find the study among the variables of the loaded scripts.

        Raises:
            UserError: It is in none of them: a notebook or a function made it.
        """
        found = cls._find(study)
        if found is None:
            raise UserError(
                f"--launcher needs {study.name} as a variable of a script, such as STUDY in experiments/*.py"
            )
        return found

    @classmethod
    def is_named(cls, study: Study) -> bool:
        """Return whether the study is a variable of a loaded script."""
        return cls._find(study) is not None

    @classmethod
    def _find(cls, study: Study) -> StudySource | None:
        modules = [sys.modules.get("__main__"), *(sys.modules.get(f.__module__) for f in (study.run, study.arms))]
        for module in modules:
            path = getattr(module, "__file__", None)
            for name, value in vars(module).items() if module is not None and path else ():
                if value is study:
                    return cls(str(Path(str(path)).resolve()), name)
        return None

    def load(self) -> Study:
        """Run the script, as an import does, and return its study."""
        name = f"tl_lightning_study_{Path(self.path).stem}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or spec.loader is None:
            raise UserError(f"{self.path} is no Python script that this machine can read")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        study = getattr(module, self.variable)
        assert isinstance(study, Study)
        return study
