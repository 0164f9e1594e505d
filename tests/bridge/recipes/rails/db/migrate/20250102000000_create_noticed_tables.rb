# What Noticed's own migrations create.
class CreateNoticedTables < ActiveRecord::Migration[6.1]
  def change
    create_table :noticed_events do |t|
      t.string :type
      t.references :record, polymorphic: true
      t.jsonb :params
      t.integer :notifications_count
      t.timestamps
    end
    create_table :noticed_notifications do |t|
      t.string :type
      t.references :event, null: false
      t.references :recipient, polymorphic: true, null: false
      t.datetime :read_at
      t.datetime :seen_at
      t.timestamps
    end
  end
end
