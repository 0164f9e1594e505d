from django.contrib.auth.views import LogoutView
from django.urls import include, path
from django.views.generic import TemplateView

urlpatterns = [
    path("", TemplateView.as_view(template_name="page.html")),
    path("plain/", TemplateView.as_view(template_name="plain.html")),
    path("logout/", LogoutView.as_view(next_page="/plain/")),
    path("tidings/", include("tidings_django.urls")),
]
