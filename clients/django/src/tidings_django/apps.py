from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_out
from django.core import checks
from django.db.models.signals import pre_migrate


class TidingsConfig(AppConfig):
    name = "tidings_django"
    verbose_name = "Tidings"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks as own_checks
        from . import signals, stand_in

        checks.register(own_checks.check_settings, "tidings")
        checks.register(own_checks.check_urls, checks.Tags.urls)
        checks.register(own_checks.check_database, checks.Tags.database)
        user_logged_out.connect(signals.end_streams, dispatch_uid="tidings_django")
        pre_migrate.connect(stand_in.create_in_test_databases, sender=self)
