from django.contrib.auth.models import User
from django.test import TestCase
from django.urls import reverse

from tidings_django.test import captured_notifications


class HomeTests(TestCase):
    def test_the_form_notifies_the_user(self):
        alice, bob = User.objects.order_by("username")
        self.client.force_login(alice)
        with captured_notifications() as captured:
            response = self.client.post(reverse("home"), {"user": bob.pk, "text": "Hello Bob"})
        self.assertRedirects(response, reverse("home"))
        self.assertEqual([(n.user_id, n.text) for n in captured], [(str(bob.pk), "Hello Bob")])

    def test_an_invalid_form_notifies_nobody(self):
        self.client.force_login(User.objects.get(username="alice"))
        with captured_notifications() as captured:
            self.client.post(reverse("home"), {"text": "Hello nobody"})
        self.assertEqual(captured, [])

    def test_users_can_log_out(self):
        self.client.force_login(User.objects.get(username="alice"))
        response = self.client.post(reverse("logout"))
        self.assertRedirects(response, reverse("login"))
