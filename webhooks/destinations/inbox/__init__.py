"""The inbox: a destination that nothing is sent to.  Its deliveries wait until the tenant fetches them."""
