from django.contrib.auth.hashers import make_password
from django.db import migrations


def create_people(apps, schema_editor):
    User = apps.get_model("auth", "User")
    for name in ("alice", "bob"):
        User.objects.create(username=name, password=make_password(name))


class Migration(migrations.Migration):
    """Two people to try the example with. Their passwords are their names."""

    dependencies = [
        ("bell", "0002_send_notifications"),
        ("auth", "0012_alter_user_first_name_max_length"),
    ]

    operations = [migrations.RunPython(create_people, migrations.RunPython.noop)]
