# A minimal Rails application, in place of the one that `rails new` creates.

require "rails"
require "active_record/railtie"
require "action_controller/railtie"

class Application < Rails::Application
  config.load_defaults 6.1
  config.eager_load = false
  config.secret_key_base = "for the tests only" * 2
  config.logger = Logger.new($stderr)
  config.log_level = :warn
  config.hosts.clear
  config.active_support.deprecation = :stderr
end
