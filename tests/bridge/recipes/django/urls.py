from django.urls import path
from shop import views

urlpatterns = [
    path("stream-cookie", views.stream_cookie),
    path("stream-ticket", views.stream_ticket),
    path("log-out", views.log_out),
]
