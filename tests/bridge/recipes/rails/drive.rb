# Does with the code of the page what it is told, a line at a time.

require "active_record"
require "jwt"

$stdout.sync = true
ActiveRecord::Base.establish_connection(ENV.fetch("DATABASE_URL"))

class ApplicationRecord < ActiveRecord::Base
  self.abstract_class = true
end

%w[order notification stream_access].each { |file| require_relative "app/models/#{file}" }

commands = {
  "order" => lambda do |customer, item|
    Order.place(customer, item)
  rescue ActiveRecord::StatementInvalid => e
    "refused: #{e.message.lines.first.chomp}"
  end,
  "announce" => ->(customers, text) { Order.announce(customers.split(","), text) && "done" },
  "token" => ->(user) { StreamAccess.token(user) },
  "ticket" => ->(user) { StreamAccess.ticket(user) },
  "logout" => ->(user) { StreamAccess.end_streams(user).to_s }
}

release = ->(gem) { Gem.loaded_specs[gem].version.segments.first(3).join(".") }
puts "ActiveRecord #{release['activerecord']}, pg #{release['pg']}, jwt #{release['jwt']}"
while (line = $stdin.gets)
  command, *words = line.chomp.split(" ", 3)
  puts commands.fetch(command).call(*words)
end
