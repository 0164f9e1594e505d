<?php

// Does with the code of the page what it is told, a line at a time.

require 'Illuminate/autoload.php';

use App\Models\User;
use App\Notifications\CommentPosted;
use App\Shop;
use App\StreamAccess;
use Illuminate\Contracts\Console\Kernel as Console;
use Illuminate\Contracts\Debug\ExceptionHandler;
use Illuminate\Contracts\Http\Kernel as Http;
use Illuminate\Http\Request;
use Illuminate\Support\Facades\Artisan;
use Illuminate\Support\Facades\DB;
use Illuminate\Support\Facades\Notification;

spl_autoload_register(function ($class) {
    $file = __DIR__ . '/' . preg_replace('~^App/~', 'app/', strtr($class, '\\', '/')) . '.php';
    if (is_file($file)) {
        require $file;
    }
});

$app = new Illuminate\Foundation\Application(__DIR__);
$app->singleton(Console::class, Illuminate\Foundation\Console\Kernel::class);
$app->singleton(Http::class, App\Http\Kernel::class);
$app->singleton(ExceptionHandler::class, Illuminate\Foundation\Exceptions\Handler::class);
$app->make(Console::class)->bootstrap();

/** Runs one of artisan's commands. */
function artisan($command)
{
    if (Artisan::call($command) !== 0) {
        throw new Exception(Artisan::output());
    }
}

/** The application as it is without the section on its own table. */
foreach (glob('database/migrations/*.php') as $migration) {
    if (!strpos($migration, '_adopt_')) {
        artisan("migrate --force --path=$migration");
    }
}

function users($ids)
{
    return collect(explode(',', $ids))->map(fn ($id) => User::firstOrCreate(['id' => $id]));
}

function user($id)
{
    return users($id)[0];
}

/** What the application answers to a browser with these cookies. */
function visit($method, $path, array $cookies = [], array $headers = [])
{
    $request = Request::create("https://shop.test$path", $method, [], $cookies);
    $request->headers->add($headers);
    $response = app(Http::class)->handle($request);
    if ($response->getStatusCode() >= 300) {
        throw new Exception($response->getStatusCode() . ': ' . $response->getContent());
    }
    return collect($response->headers->getCookies())->keyBy->getName();
}

/** The stream's cookie, as a route sets it for a user who has logged in. */
function cookie_from($path, $id)
{
    $cookies = visit('GET', '/login/' . user($id)->id)->map->getValue();
    $token = ['X-XSRF-TOKEN' => $cookies['XSRF-TOKEN']];
    $cookie = visit('POST', $path, $cookies->all(), $token)['tidings_token'];
    if ($cookie->getPath() !== '/stream') {
        throw new Exception("a cookie for {$cookie->getPath()}");
    }
    return $cookie;
}

$commands = [
    'order' => function ($id, $item) {
        try {
            return Shop::placeOrder(user($id), $item);
        } catch (PDOException $error) {
            return 'refused: ' . strtr($error->getMessage(), "\n", ' ');
        }
    },
    'announce' => fn ($ids, $text) => Shop::announce(users($ids), $text),
    'token' => fn ($id) => cookie_from('/stream-cookie', $id)->getValue(),
    'ticket' => fn ($id) => StreamAccess::ticket(user($id)),
    'logout' => fn ($id) => cookie_from('/logout', $id)->isCleared() ? 'done' : 'the cookie stays',
    'adopt' => function ($script) {
        passthru("bash -e $script >&2", $status);
        return $status === 0 ? artisan('migrate --force') : 'failed';
    },
    'release' => fn ($steps) => artisan("migrate:rollback --force --step=$steps"),
    'notify' => function ($ids, $text) {
        Notification::send(users($ids), new CommentPosted($text));
        return users($ids)[0]->notifications()->where('data', 'like', "%$text%")->value('id');
    },
    'discard' => function ($ids, $text) {
        DB::beginTransaction();
        Notification::send(users($ids), new CommentPosted($text));
        DB::rollBack();
    },
];

echo 'Laravel ', $app->version(), "\n";
while (($line = fgets(STDIN)) !== false) {
    [$command, $words] = explode(' ', rtrim($line, "\n"), 2);
    echo $commands[$command](...explode(' ', $words, 2)), "\n";
}
