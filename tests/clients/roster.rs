//! The clients, and what is expected of each.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// A page of the stream's own origin.
    Chromium,
    Firefox,
    Node,
    /// Its own `EventSource`, which must be enabled with a flag.
    NodeBuiltIn,
    Python,
    Rust,
}

/// Where its version is pinned.
#[derive(Clone, Copy, Debug)]
pub enum Pinned {
    /// By Debian.
    Browser,
    /// In `scripts/tools`.
    Node,
    Npm(&'static str),
    PyPi(&'static str),
    Cargo(&'static str),
}

/// When a client takes the id of an event as its last event id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    /// With the event, as the standard requires. No row is lost.
    OfEvent,
    /// As soon as the id line is read. A row is lost if its connection breaks between
    /// that line and the empty line that ends the event, which are a single byte apart.
    OfLine,
}

/// Whether a client gives up permanently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivesUp {
    /// It reconnects by itself, or the application's loop around it does.
    Never,
    /// If a response head ends early, which doesn't happen in every run.
    Sometimes,
    /// At the latest after the 401 for an expired token.
    Always,
}

#[derive(Debug)]
pub struct Client {
    /// The name of its adapter.
    pub name: &'static str,
    pub title: &'static str,
    pub pinned: Pinned,
    pub runtime: Runtime,
    /// Whether the page is of another origin than the stream.
    pub is_elsewhere: bool,
    /// Whether the adapter must request JSON, since texts are altered otherwise.
    pub is_json: bool,
    pub id: Id,
    /// Whether it has to be reopened.
    pub gives_up: GivesUp,
    /// How it was used, for the table.
    pub note: &'static str,
    /// Whether it runs in `.ci/run`.
    pub is_quick: bool,
}

const PLAIN: Client = Client {
    name: "",
    title: "",
    pinned: Pinned::Browser,
    runtime: Runtime::Node,
    is_elsewhere: false,
    is_json: false,
    id: Id::OfEvent,
    gives_up: GivesUp::Always,
    note: "",
    is_quick: false,
};

/// All of them, in the order of the table.
pub const CLIENTS: &[Client] = &[
    Client {
        name: "chromium",
        title: "Chromium",
        runtime: Runtime::Chromium,
        is_quick: true,
        note: "ticket; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "firefox",
        title: "Firefox ESR",
        runtime: Runtime::Firefox,
        is_quick: true,
        note: "ticket; opened anew after a 401, or if it connects for too long",
        ..PLAIN
    },
    Client {
        name: "chromium-elsewhere",
        title: "Chromium, page of another origin",
        runtime: Runtime::Chromium,
        is_elsewhere: true,
        note: "ticket; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "firefox-elsewhere",
        title: "Firefox ESR, page of another origin",
        runtime: Runtime::Firefox,
        is_elsewhere: true,
        note: "ticket; opened anew whenever it is closed, or connects for too long",
        ..PLAIN
    },
    Client {
        name: "eventsource-1",
        id: Id::OfLine,
        title: "eventsource 1",
        pinned: Pinned::Npm("eventsource-1"),
        note: "fixed headers; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "eventsource-2",
        id: Id::OfLine,
        title: "eventsource 2",
        pinned: Pinned::Npm("eventsource-2"),
        note: "fixed headers; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "eventsource-3",
        title: "eventsource 3",
        pinned: Pinned::Npm("eventsource-3"),
        gives_up: GivesUp::Never,
        note: "`fetch` brings a new token",
        ..PLAIN
    },
    Client {
        name: "eventsource-4",
        title: "eventsource 4",
        pinned: Pinned::Npm("eventsource-4"),
        gives_up: GivesUp::Never,
        note: "`fetch` brings a new token",
        ..PLAIN
    },
    Client {
        name: "eventsource-5",
        title: "eventsource 5",
        pinned: Pinned::Npm("eventsource-5"),
        gives_up: GivesUp::Never,
        is_quick: true,
        note: "`fetch` brings a new token",
        ..PLAIN
    },
    Client {
        name: "eventsource-client",
        title: "eventsource-client",
        pinned: Pinned::Npm("eventsource-client"),
        gives_up: GivesUp::Never,
        note: "`fetch` brings a new token",
        ..PLAIN
    },
    Client {
        name: "fetch-event-source",
        id: Id::OfLine,
        title: "@microsoft/fetch-event-source",
        pinned: Pinned::Npm("@microsoft/fetch-event-source"),
        runtime: Runtime::Chromium,
        is_json: true,
        gives_up: GivesUp::Never,
        is_quick: true,
        note: "`fetch` brings a new token; `onclose` throws; JSON",
        ..PLAIN
    },
    Client {
        name: "event-source-polyfill",
        title: "event-source-polyfill",
        pinned: Pinned::Npm("event-source-polyfill"),
        runtime: Runtime::Chromium,
        note: "fixed headers; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "reconnecting-eventsource",
        title: "reconnecting-eventsource",
        pinned: Pinned::Npm("reconnecting-eventsource"),
        runtime: Runtime::Chromium,
        note: "ticket; opened anew after ten failures in a row",
        ..PLAIN
    },
    Client {
        name: "launchdarkly-eventsource",
        title: "launchdarkly-eventsource",
        pinned: Pinned::Npm("launchdarkly-eventsource"),
        note: "fixed headers; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "sse.js",
        title: "sse.js",
        pinned: Pinned::Npm("sse.js"),
        runtime: Runtime::Chromium,
        note: "fixed headers; `autoReconnect`; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "extended-eventsource",
        id: Id::OfLine,
        title: "extended-eventsource",
        pinned: Pinned::Npm("extended-eventsource"),
        runtime: Runtime::Chromium,
        is_json: true,
        gives_up: GivesUp::Sometimes,
        note: "`fetch` brings a new token; JSON",
        ..PLAIN
    },
    Client {
        name: "undici",
        title: "undici",
        pinned: Pinned::Npm("undici"),
        note: "ticket; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "native",
        title: "Node.js, built in",
        pinned: Pinned::Node,
        runtime: Runtime::NodeBuiltIn,
        note: "ticket; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "httpx-sse",
        title: "httpx-sse",
        pinned: Pinned::PyPi("httpx-sse"),
        runtime: Runtime::Python,
        is_json: true,
        gives_up: GivesUp::Never,
        is_quick: true,
        note: "a loop of your own; JSON",
        ..PLAIN
    },
    Client {
        name: "sseclient-py",
        title: "sseclient-py",
        pinned: Pinned::PyPi("sseclient-py"),
        runtime: Runtime::Python,
        is_json: true,
        gives_up: GivesUp::Never,
        note: "a loop of your own; JSON",
        ..PLAIN
    },
    Client {
        name: "requests-sse",
        title: "requests-sse",
        pinned: Pinned::PyPi("requests-sse"),
        runtime: Runtime::Python,
        is_json: true,
        note: "opened anew after an error; JSON",
        ..PLAIN
    },
    Client {
        name: "aiohttp-sse-client2",
        title: "aiohttp-sse-client2",
        pinned: Pinned::PyPi("aiohttp-sse-client2"),
        runtime: Runtime::Python,
        is_json: true,
        note: "opened anew after each disconnect; JSON",
        ..PLAIN
    },
    Client {
        name: "reqwest-eventsource",
        title: "reqwest-eventsource",
        pinned: Pinned::Cargo("reqwest-eventsource"),
        runtime: Runtime::Rust,
        note: "fixed headers; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "eventsource-client",
        title: "eventsource-client (Rust)",
        pinned: Pinned::Cargo("eventsource-client"),
        runtime: Runtime::Rust,
        note: "fixed headers; opened anew after a 401",
        ..PLAIN
    },
    Client {
        name: "eventsource-stream",
        title: "eventsource-stream",
        pinned: Pinned::Cargo("eventsource-stream"),
        runtime: Runtime::Rust,
        gives_up: GivesUp::Never,
        note: "a loop of your own",
        ..PLAIN
    },
];

impl Client {
    /// Its name in `TIDINGS_CLIENTS`.
    pub fn key(&self) -> String {
        match self.runtime {
            Runtime::Rust => format!("rust:{}", self.name),
            Runtime::NodeBuiltIn => "node".to_owned(),
            _ => self.name.to_owned(),
        }
    }
}
