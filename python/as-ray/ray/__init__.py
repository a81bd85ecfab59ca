"""In front of any ray that is installed: what `launcher run --as-ray` imports as ray."""

import launcher.as_ray
