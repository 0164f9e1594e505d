<?php

return ['tidings' => ['secret' => env('TIDINGS_JWT_SECRET')]];
