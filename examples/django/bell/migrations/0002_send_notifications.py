from django.db import migrations

from tidings_django.operations import AdoptModel


class Migration(migrations.Migration):
    dependencies = [("bell", "0001_initial")]

    operations = [AdoptModel("Notification", mark="sent")]
