from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path

from bell import views

urlpatterns = [
    path("", views.home, name="home"),
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("tidings/", include("tidings_django.urls")),
]
