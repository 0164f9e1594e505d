<?php

// Does with the code of the page what it is told, a line at a time.

require 'Illuminate/Database/autoload.php';

use App\Shop;
use App\StreamAccess;
use Illuminate\Container\Container;
use Illuminate\Database\Capsule\Manager;
use Illuminate\Support\Facades\Facade;

spl_autoload_register(function ($class) {
    $file = preg_replace('~^App/~', 'app/', strtr($class, '\\', '/')) . '.php';
    if (is_file($file)) {
        require $file;
    }
});

function config($name)
{
    return $name === 'services.tidings.secret' ? getenv('TIDINGS_JWT_SECRET') : null;
}

$url = parse_url(getenv('DATABASE_URL'));
$manager = new Manager($app = new Container());
$manager->addConnection([
    'driver' => 'pgsql',
    'host' => $url['host'],
    'port' => $url['port'],
    'username' => $url['user'],
    'database' => ltrim($url['path'], '/'),
    'charset' => 'utf8',
]);
$manager->bootEloquent();
$app->instance('db', $manager->getDatabaseManager());
Facade::setFacadeApplication($app);

function order($customer, $item)
{
    try {
        return Shop::placeOrder($customer, $item);
    } catch (PDOException $error) {
        return 'refused: ' . strtr($error->getMessage(), "\n", ' ');
    }
}

$commands = [
    'order' => 'order',
    'announce' => fn ($customers, $text) => Shop::announce(explode(',', $customers), $text),
    'token' => fn ($user) => StreamAccess::token($user),
    'ticket' => fn ($user) => StreamAccess::ticket($user),
    'logout' => fn ($user) => StreamAccess::endStreams($user),
];

$debian = shell_exec("dpkg-query -W -f '\${Version}' php-illuminate-database");
echo 'illuminate/database ', preg_replace('/[^0-9.].*/', '', $debian), "\n";
while (($line = fgets(STDIN)) !== false) {
    [$command, $words] = explode(' ', rtrim($line, "\n"), 2);
    echo $commands[$command](...explode(' ', $words, 2)), "\n";
}
