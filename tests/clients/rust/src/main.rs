//! Opens the streams listed on standard input, with the client named by the first
//! argument, as its documentation and docs/clients.md recommend, and prints each event
//! as a line of JSON.

use std::{env, io::Write, time::Duration};

use eventsource_client::{self as launchdarkly, Client as _};
use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use launchdarkly_sdk_transport::HyperTransport;
use reqwest_eventsource::retry::Constant;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin},
    time::sleep,
};

/// The pause between two connections, if the library has no delay of its own.
const PAUSE: Duration = Duration::from_millis(50);

/// One stream, with the token and the id for its next connection.
struct Stream {
    n: u64,
    url: String,
    token_url: String,
    http: reqwest::Client,
    token: Option<String>,
    last: String,
}

impl Stream {
    fn of(settings: &Value) -> Self {
        let text = |name: &str| settings[name].as_str().expect("a text").to_owned();
        Self {
            n: settings["n"].as_u64().expect("a number"),
            url: text("url"),
            token_url: text("token_url"),
            http: reqwest::Client::new(),
            token: None,
            last: String::new(),
        }
    }

    async fn token(&mut self) -> String {
        if self.token.is_none() {
            let answer = self.http.get(&self.token_url).send().await;
            let text = answer.expect("an answer").text().await.expect("a text");
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            self.token = answer["token"].as_str().map(str::to_owned);
        }
        format!("Bearer {}", self.token.as_deref().unwrap_or_default())
    }

    async fn request(&mut self) -> reqwest::RequestBuilder {
        let request = self.http.get(&self.url);
        let request = request.header("Authorization", self.token().await);
        match self.last.is_empty() {
            true => request,
            false => request.header("Last-Event-ID", &self.last),
        }
    }

    /// Returns whether the stream must be reopened with another token.
    fn event(&mut self, name: &str, id: &str, data: &str) -> bool {
        if !id.is_empty() {
            self.last = id.to_owned();
        }
        let name = if name.is_empty() { "message" } else { name };
        print(&json!({ "n": self.n, "event": name, "id": id, "data": data }));
        let is_expiring = name == "tidings.expiring";
        if is_expiring {
            self.token = None;
        }
        is_expiring
    }

    fn gave_up(&mut self, why: &str) {
        print(&json!({ "n": self.n, "gave_up": why }));
        if why.contains("401") {
            self.token = None;
        }
    }
}

fn print(line: &Value) {
    let line = format!("{line}\n");
    std::io::stdout()
        .lock()
        .write_all(line.as_bytes())
        .expect("a reader");
}

async fn reqwest_eventsource(mut stream: Stream) {
    loop {
        // The library adds its header to that of the request instead of replacing it,
        // so the last event id is sent in the query.
        let mut request = stream.http.get(&stream.url);
        if !stream.last.is_empty() {
            request = request.query(&[("last_event_id", &stream.last)]);
        }
        let request = request.header("Authorization", stream.token().await);
        let mut source = reqwest_eventsource::EventSource::new(request).expect("a request");
        source.set_retry_policy(Box::new(Constant::new(PAUSE, None)));
        let mut why = None;
        while let Some(event) = source.next().await {
            match event {
                Ok(reqwest_eventsource::Event::Open) => {}
                Ok(reqwest_eventsource::Event::Message(event)) => {
                    if stream.event(&event.event, &event.id, &event.data) {
                        break;
                    }
                }
                Err(error) => why = Some(error.to_string()),
            }
            if source.ready_state() == reqwest_eventsource::ReadyState::Closed {
                stream.gave_up(&why.unwrap_or_default());
                break;
            }
        }
        source.close();
        sleep(PAUSE).await;
    }
}

async fn eventsource_client(mut stream: Stream) {
    loop {
        let transport = HyperTransport::builder().build_http().expect("a transport");
        let reconnect = launchdarkly::ReconnectOptions::reconnect(true)
            .retry_initial(true)
            .delay(PAUSE)
            .delay_max(4 * PAUSE)
            .build();
        let mut builder = launchdarkly::ClientBuilder::for_url(&stream.url)
            .expect("a URL")
            .header("Authorization", &stream.token().await)
            .expect("a header")
            .reconnect(reconnect);
        if !stream.last.is_empty() {
            builder = builder.last_event_id(stream.last.clone());
        }
        let mut events = builder.build_with_transport(transport).stream();
        let mut is_expiring = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(launchdarkly::SSE::Event(event)) => {
                    let id = event.id.unwrap_or_default();
                    is_expiring = stream.event(&event.event_type, &id, &event.data);
                }
                Ok(_) => {}
                // It continues by itself after all other errors.
                Err(launchdarkly::Error::UnexpectedResponse(response, _)) => {
                    if response.status() == 401 {
                        stream.gave_up("401");
                        break;
                    }
                }
                Err(_) => {}
            }
            if is_expiring {
                break;
            }
        }
        sleep(PAUSE).await;
    }
}

async fn eventsource_stream(mut stream: Stream) {
    loop {
        let request = stream.request().await.header("Accept", "text/event-stream");
        match request.send().await {
            Ok(response) if response.status() == 200 => {
                let mut events = response.bytes_stream().eventsource();
                events.set_last_event_id(stream.last.clone());
                while let Some(Ok(event)) = events.next().await {
                    stream.event(&event.event, &event.id, &event.data);
                }
            }
            Ok(response) if response.status() == 401 => stream.token = None,
            _ => {}
        }
        sleep(PAUSE).await;
    }
}

#[tokio::main]
async fn main() {
    let mut input = BufReader::new(stdin());
    let mut line = String::new();
    input.read_line(&mut line).await.expect("the streams");
    let streams: Vec<Value> = serde_json::from_str(&line).expect("JSON");
    let client = env::args().nth(1).expect("a client");
    for settings in &streams {
        let stream = Stream::of(settings);
        match client.as_str() {
            "reqwest-eventsource" => tokio::spawn(reqwest_eventsource(stream)),
            "eventsource-client" => tokio::spawn(eventsource_client(stream)),
            "eventsource-stream" => tokio::spawn(eventsource_stream(stream)),
            other => panic!("no client {other}"),
        };
    }
    // Until standard input ends.
    let _ = input.read_to_end(&mut Vec::new()).await;
    std::process::exit(0);
}
