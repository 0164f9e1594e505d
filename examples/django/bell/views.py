from django import forms
from django.contrib.auth.decorators import login_required
from django.shortcuts import redirect, render

from .models import Notification


class NotificationForm(forms.ModelForm):
    class Meta:
        model = Notification
        fields = ["user", "text"]


@login_required
def home(request):
    form = NotificationForm(request.POST or None, initial={"user": request.user})
    if form.is_valid():
        form.save()
        return redirect("home")
    latest = Notification.objects.filter(user=request.user).order_by("-pk")[:20]
    return render(request, "bell/home.html", {"form": form, "latest": latest})
