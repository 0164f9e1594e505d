from django.apps import AppConfig


class TidingsConfig(AppConfig):
    name = "tidings_django"
    verbose_name = "Tidings"
    default_auto_field = "django.db.models.BigAutoField"
