//! Where the applications of the pages sell: Tidings in a schema of its own, and
//! the application's tables beside it.

use tidings::postgres::schema::{self, SchemaName};

use super::application::Application;
use crate::support::{
    bridge::Bridge, database::Database, event_source::EventSource, proxy::Proxy, until,
};

/// What lets a user in.
#[derive(Clone, Copy, Debug)]
pub enum Proof {
    Token,
    Ticket,
}

/// A database, with a bridge.
pub struct Shop {
    database: Database,
    bridge: Bridge,
    /// Not every driver knows Unix sockets.
    network: Proxy,
}

/// Some applications have made it already, by their own migrations.
const ORDERS: &str = "\
    create table if not exists orders ( \
      id bigint generated always as identity primary key, \
      customer text not null, \
      item text not null \
    )";

/// The commit of an order and its notification is what fails, so that all of a
/// page's code has run. One without the other would be let through.
const NO_UNICORNS: &str = "\
    create function refuse() returns trigger language plpgsql security definer as $$ \
      begin \
        if exists (select from tidings.notifications where xid = pg_current_xact_id()) then \
          raise integrity_constraint_violation using message = 'there are no unicorns'; \
        end if; \
        return null; \
      end \
    $$; \
    create constraint trigger refuse after insert on orders \
    deferrable initially deferred \
    for each row when (new.item = 'unicorn') execute function refuse()";

/// Of a bridge for such a database.
pub const SETTINGS: [&str; 2] = ["--schema=tidings", "--migrate=never"];

/// A database with Tidings in a schema of its own, in which the application may
/// create tables.
pub async fn database() -> Database {
    let database = Database::empty().await;
    database.prepare("tidings").await;
    let schema: SchemaName = "tidings".parse().expect("a name");
    let migrated = schema::migrate(&database.owner().url(), &schema, schema::LOCK_LIMIT).await;
    migrated.expect("the migrations");
    let create = "grant create on schema public to application";
    database.superuser().execute(create).await;
    database
}

/// The database as an application takes it, over this network.
pub fn database_url(database: &Database, network: &Proxy) -> String {
    let name = database.name();
    format!("postgresql://application@{}/{name}", network.address())
}

impl Shop {
    pub async fn open() -> Self {
        let database = database().await;
        let bridge = Bridge::start_with(&database, &SETTINGS).await;
        let (network, _) = database.over_network().await;
        Self {
            database,
            bridge,
            network,
        }
    }

    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// As an application takes it.
    pub fn database_url(&self) -> String {
        database_url(&self.database, &self.network)
    }

    /// Opens: from now on there are orders.
    pub async fn sells(&self) {
        self.execute(ORDERS).await;
        self.database.superuser().execute(NO_UNICORNS).await;
    }

    pub async fn execute(&self, work: &str) {
        self.database.execute(work).await;
    }

    /// The user's stream, which what the application gives opens, and nothing
    /// else.
    pub async fn enter(
        &self,
        application: &mut Application,
        proof: Proof,
        user: &str,
    ) -> EventSource {
        let address = self.bridge.address();
        let mut stream = match proof {
            Proof::Token => {
                let token = application.ask(&format!("token {user}")).await;
                let cookie = format!("tidings_token={token}");
                EventSource::open(address, "/stream", &[("Cookie", &cookie)]).await
            }
            Proof::Ticket => {
                let ticket = application.ask(&format!("ticket {user}")).await;
                EventSource::open(address, &format!("/stream?ticket={ticket}"), &[]).await
            }
        };
        until(&mut stream, "tidings.caught-up").await;
        stream
    }

    /// What was ordered, in order.
    pub async fn sold(&self) -> Vec<String> {
        let client = self.database.connect().await;
        let orders = client.query("select item from orders order by id", &[]);
        let orders = orders.await.expect("orders");
        orders.iter().map(|order| order.get(0)).collect()
    }

    pub async fn notifications_of(&self, user: &str) -> i64 {
        let count = format!("select count(*) from tidings.notifications where user_id = '{user}'");
        self.database.superuser().ids(&count).await[0]
    }

    /// How many tickets there are.
    pub async fn tickets(&self) -> i64 {
        let count = "select count(*) from tidings.stream_tickets";
        self.database.superuser().ids(count).await[0]
    }
}
