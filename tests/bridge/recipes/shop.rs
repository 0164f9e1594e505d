//! The shop that the pages' applications run: Tidings in its own schema, next to the application's
//! tables.

use tidings::postgres::schema::{self, SchemaName};

use super::application::Application;
use crate::support::{
    bridge::Bridge, database::Database, event_source::EventSource, proxy::Proxy, until,
};

/// How a user authenticates.
#[derive(Clone, Copy, Debug)]
pub enum Proof {
    Token,
    Ticket,
}

/// A database with a bridge.
pub struct Shop {
    database: Database,
    bridge: Bridge,
    /// Not every driver supports Unix sockets.
    network: Proxy,
}

/// Some applications have already created the table in their own migrations.
const ORDERS: &str = "\
    create table if not exists orders ( \
      id bigint generated always as identity primary key, \
      customer text not null, \
      item text not null \
    )";

/// Orders of a unicorn fail at commit, if both the order and its notification were inserted, so
/// that all of the page's code has run. One without the other would be accepted.
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

/// The settings of a bridge for such a database.
pub const SETTINGS: [&str; 2] = ["--schema=tidings", "--migrate=never"];

/// A database with Tidings in its own schema, in which the application may create tables.
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

/// The database's URL for an application that connects through this proxy.
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

    /// The database's URL for an application.
    pub fn database_url(&self) -> String {
        database_url(&self.database, &self.network)
    }

    /// Creates the orders table and its rule.
    pub async fn sells(&self) {
        self.execute(ORDERS).await;
        self.database.superuser().execute(NO_UNICORNS).await;
    }

    pub async fn execute(&self, work: &str) {
        self.database.execute(work).await;
    }

    /// Opens the user's stream, and reads it up to its live rows.
    pub async fn enter(
        &self,
        application: &mut Application,
        proof: Proof,
        user: &str,
    ) -> EventSource {
        let mut stream = self.connect(application, proof, user).await;
        until(&mut stream, "tidings.caught-up").await;
        stream
    }

    /// Opens the user's stream, using only the credentials that the application issues.
    pub async fn connect(
        &self,
        application: &mut Application,
        proof: Proof,
        user: &str,
    ) -> EventSource {
        let address = self.bridge.address();
        match proof {
            Proof::Token => {
                let token = application.ask(&format!("token {user}")).await;
                let cookie = format!("tidings_token={token}");
                EventSource::open(address, "/stream", &[("Cookie", &cookie)]).await
            }
            Proof::Ticket => {
                let ticket = application.ask(&format!("ticket {user}")).await;
                EventSource::open(address, &format!("/stream?ticket={ticket}"), &[]).await
            }
        }
    }

    /// The items ordered, oldest first.
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

    pub async fn tickets(&self) -> i64 {
        let count = "select count(*) from tidings.stream_tickets";
        self.database.superuser().ids(count).await[0]
    }
}
