"""Plants one fault in every Python that is started with this folder on PYTHONPATH; PLANTED names it.

The product knows nothing of it: Python imports this module at start-up, and a hook changes a module right after it was loaded.
"""

import importlib.abc
import importlib.util
import os
import sys


class _Hook(importlib.abc.MetaPathFinder):
    """Finds the modules to change, and changes each after its own code has run."""

    def __init__(self, patches):
        self.patches = dict(patches)

    def find_spec(self, name, path, target=None):
        if name not in self.patches:
            return None
        patch = self.patches.pop(name)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("PLANTED"):
    import plants

    sys.meta_path.insert(0, _Hook(plants.PLANTS[os.environ["PLANTED"]].patches))
