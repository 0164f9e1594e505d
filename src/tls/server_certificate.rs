//! The certificate for serving HTTPS, reloaded while the bridge runs. HTTPS enables
//! HTTP/2, over which a browser uses one connection for all its streams; over HTTP/1.1,
//! the seventh tab waits for one of the other six.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{info, warn};

use crate::{
    runtime::error_chain::ErrorChain,
    tls::certificates::{self, CertificateFileError},
};

/// Time limit for a client's handshake. A phone on a bad network needs several seconds.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The ALPN name of HTTP/2.
const HTTP_2: &[u8] = b"h2";

/// How often the files are checked.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// A certificate that is reloaded when its files change.
#[derive(Debug)]
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// A message that says what is wrong with them; also if they don't belong together.
    pub fn read(certificate: PathBuf, key: PathBuf) -> Result<Self, CertificateFileError> {
        let current = certificates::certified_key(&certificate, &key)?;
        Ok(Self {
            certificate,
            key,
            current: ArcSwap::from_pointee(current),
        })
    }

    /// A TLS configuration that uses this certificate, without ALPN protocols.
    ///
    /// # Errors
    ///
    /// None in practice: the provider supports what TLS 1.2 and 1.3 need.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(certificates::provider());
        let builder = builder.with_safe_default_protocol_versions()?;
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        Ok(builder.with_no_client_auth().with_cert_resolver(resolver))
    }

    /// Accepts TLS connections for a server of HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    ///
    /// As [`server_config`](Self::server_config).
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, rustls::Error> {
        let mut config = self.server_config()?;
        config.alpn_protocols = vec![HTTP_2.to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Checks the files forever. If they can't be used, because only one of the two has
    /// been replaced yet or for any other reason, the old certificate stays in use and
    /// the reason is logged once.
    pub async fn renew(self: Arc<Self>) {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut logged = None;
        loop {
            ticks.tick().await;
            let files = Arc::clone(&self);
            let reloaded = tokio::task::spawn_blocking(move || files.reload());
            match reloaded.await {
                Ok(Ok(renewed)) => {
                    if renewed {
                        info!(
                            "the certificate in {} is now in use",
                            self.certificate.display()
                        );
                    }
                    logged = None;
                }
                Ok(Err(error)) => {
                    let reason = ErrorChain(&error).to_string();
                    if logged.as_ref() != Some(&reason) {
                        warn!("keeping the certificate that was read before: {reason}");
                        logged = Some(reason);
                    }
                }
                // The panic hook has logged it.
                Err(_) => {}
            }
        }
    }

    /// Reads the files and returns whether the certificate has changed. Existing
    /// connections keep the old one.
    ///
    /// # Errors
    ///
    /// A message that says what is wrong with them.
    pub fn reload(&self) -> Result<bool, CertificateFileError> {
        let found = certificates::certified_key(&self.certificate, &self.key)?;
        let is_new = found.cert != self.current.load().cert;
        if is_new {
            self.current.store(Arc::new(found));
        }
        Ok(is_new)
    }
}

/// Whether client and server have negotiated HTTP/2.
pub fn speaks_http2<I>(stream: &TlsStream<I>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP_2)
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}
