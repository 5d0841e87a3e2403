"""Django's settings of these names are for languages without such a module, and it has its own for English."""

DATETIME_FORMAT = r"Y-m-d H:i:s \U\T\C"
DATE_FORMAT = "Y-m-d"
