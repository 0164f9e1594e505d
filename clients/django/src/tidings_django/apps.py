from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_out


class TidingsConfig(AppConfig):
    name = "tidings_django"
    verbose_name = "Tidings"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import signals

        user_logged_out.connect(signals.end_streams, dispatch_uid="tidings_django")
