"""How the admin writes times: as the console's own pages do, with their zone (FORMAT_MODULE_PATH)."""
