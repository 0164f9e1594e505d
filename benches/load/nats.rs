//! A NATS server for bridges that share what they read.

use std::{
    env,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{net::TcpStream, time::sleep};

use crate::{Result, clock::Moment, sections::PATIENCE};

/// Dropping it kills it.
pub struct NatsServer {
    child: Child,
    address: SocketAddr,
}

impl NatsServer {
    /// Starts the server that the variable `NATS_SERVER` names.
    pub async fn start() -> Result<Self> {
        let program = env::var("NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
        // The port is free as soon as this is dropped.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let port = address.port().to_string();
        let child = Command::new(program)
            .args(["--addr", "127.0.0.1", "--port", &port])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { child, address };
        let begin = Moment::now();
        while TcpStream::connect(address).await.is_err() {
            if Moment::now().since(begin) > PATIENCE {
                return Err("nats-server doesn't listen".into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
