# Writes the rows that Noticed writes, in one transaction: its gem isn't one of Debian's packages.
module Noticed
  class Notification < ActiveRecord::Base
    self.table_name = "noticed_notifications"
    self.inheritance_column = nil
  end

  class Event < ActiveRecord::Base
    self.table_name = "noticed_events"

    def self.with(params)
      new(params: params)
    end

    def deliver(recipients)
      rows = Array.wrap(recipients).map do |recipient|
        { type: "#{self.class}::Notification", recipient_type: recipient.class.base_class.name,
          recipient_id: recipient.id, created_at: Time.current, updated_at: Time.current }
      end
      transaction do
        update!(notifications_count: rows.size)
        Notification.insert_all!(rows.map { |row| row.merge(event_id: id) })
      end
    end
  end
end
