"""Write the OpenAPI document to a file: `python -m scripts.openapi_document openapi.json`.  No server has to run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Write the document."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "devstack.typing_settings"
    import django

    django.setup()
    from drf_spectacular.settings import spectacular_settings

    document = spectacular_settings.DEFAULT_GENERATOR_CLASS().get_schema(request=None, public=True)
    Path(sys.argv[1]).write_text(json.dumps(document, default=str))


if __name__ == "__main__":
    main()
