from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    name = "webhooks"

    def ready(self) -> None:
        from events import delivery_lookup
        from webhooks.event_deliveries import EventDeliveries

        delivery_lookup.register(EventDeliveries())
