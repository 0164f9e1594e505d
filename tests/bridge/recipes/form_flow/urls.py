from django.contrib.auth.views import LoginView
from django.urls import path
from shop import pages

urlpatterns = [
    path("login", LoginView.as_view()),
    path("page/<int:number>", pages.page, name="page"),
    path("page/<int:number>/order", pages.order, name="order"),
]
