from django.contrib.auth.decorators import login_required
from django.shortcuts import redirect, render

from .models import Notification


@login_required
def home(request):
    if request.method == "POST":
        Notification.objects.create(user=request.user, text=request.POST["text"])
        return redirect("home")
    return render(request, "home.html")
