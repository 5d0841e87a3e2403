"""Where deliveries go: one package for each kind of destination, behind the interface in `base`."""
