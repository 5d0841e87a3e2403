"""`python -m triggers_project.options NAME ...`: print these settings' values as JSON, or what is wrong with any."""

import json
import os
import sys

from django.core.exceptions import ImproperlyConfigured

from triggers_project.options.reading import read_local_env, read_options

read_local_env()
try:
    values = read_options(os.environ)
except ImproperlyConfigured as error:
    sys.exit(str(error))
sys.stdout.write(json.dumps({name: values[name] for name in sys.argv[1:]}))
