"""Import bars of any vendor into the layout that everything else reads."""

from jaxtrader.data.importing.convert import ImportOptions
from jaxtrader.data.importing.run import Imported, import_files

__all__ = ["ImportOptions", "Imported", "import_files"]
