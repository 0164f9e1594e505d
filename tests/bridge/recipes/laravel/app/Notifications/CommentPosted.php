<?php

namespace App\Notifications;

use Illuminate\Notifications\Notification;

class CommentPosted extends Notification
{
    public string $title;

    public function __construct(string $title)
    {
        $this->title = $title;
    }

    public function via()
    {
        return ['database'];
    }

    public function toArray()
    {
        return ['title' => $this->title, 'address' => 'not for browsers'];
    }
}
