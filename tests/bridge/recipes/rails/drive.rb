# Does with the code of the page what it is told, a line at a time.

require_relative "config/application"
require_relative "noticed"

$stdout.sync = true
Application.initialize!
Rails.application.routes.append { get "session" => "sessions#new" }
Rails.application.reload_routes!

ActiveRecord::Migration.verbose = false
MIGRATIONS = ActiveRecord::Base.connection.migration_context
MIGRATIONS.up { |migration| !migration.name.start_with?("Adopt") }

def user(id)
  User.find_or_create_by!(id: id)
end

def users(ids)
  ids.split(",").map { |id| user(id) }
end

def project(id)
  Project.find_or_create_by!(id: id)
end

# The cookie that the page's controller sets for a user who is logged in.
def cookie(method, id)
  browser = ActionDispatch::Integration::Session.new(Rails.application)
  browser.https!
  browser.get("/session", params: { user: user(id).id })
  browser.public_send(method, "/stream-cookie", headers: { "X-CSRF-Token" => browser.response.body })
  raise browser.response.body unless browser.response.status == 204
  browser.response.headers["Set-Cookie"][/^tidings_token=(.*?);.* path=\/stream;/, 1]
end

commands = {
  "order" => lambda do |id, item|
    Order.place(user(id), item)
  rescue ActiveRecord::StatementInvalid => e
    "refused: #{e.message.lines.first.chomp}"
  end,
  "announce" => ->(ids, text) { Order.announce(users(ids), text) && "done" },
  "join" => ->(member, id) { project(id).members << user(member) && "done" },
  "leave" => ->(member, id) { project(id).members.delete(user(member)) && "done" },
  "tell" => ->(id, text) { project(id).tell(text) },
  "token" => ->(id) { cookie(:post, id) },
  "ticket" => ->(id) { StreamAccess.ticket(user(id)) },
  "logout" => ->(id) { cookie(:delete, id).empty? && "done" },
  "adopt" => ->(script) { system("bash", "-e", script) && MIGRATIONS.migrate && "done" },
  "release" => ->(steps) { MIGRATIONS.rollback(steps.to_i) && "done" },
  "notify" => lambda do |ids, text|
    CommentNotifier.with(text: text).deliver(users(ids))
    Noticed::Notification.where(recipient_id: ids.to_i).maximum(:id)
  end,
  "discard" => lambda do |ids, text|
    ActiveRecord::Base.transaction do
      CommentNotifier.with(text: text).deliver(users(ids))
      raise ActiveRecord::Rollback
    end
    "done"
  end
}

release = ->(gem) { Gem::Specification.find_by_name(gem).version.segments.first(3).join(".") }
puts "Rails #{release['railties']}, pg #{release['pg']}, jwt #{release['jwt']}"
while (line = $stdin.gets)
  command, *words = line.chomp.split(" ", 3)
  puts commands.fetch(command).call(*words)
end
