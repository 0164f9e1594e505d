from django.urls import path

from . import views

app_name = "tidings_django"
urlpatterns = [
    path("cookie/", views.stream_cookie, name="cookie"),
    path("ticket/", views.stream_ticket, name="ticket"),
]
