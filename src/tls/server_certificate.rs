//! HTTPS for browsers: the certificate, and its renewal while the bridge runs.
//! With it comes HTTP/2, over which a browser has all its streams in one
//! connection; without, the seventh tab waits for one of the six others.

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

use crate::tls::certificates;

/// A client has this long for its handshake: a phone on a bad network needs
/// some seconds of it.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The name of HTTP/2 in a handshake.
const HTTP_2: &[u8] = b"h2";

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// A certificate that is read again when its files change.
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
    /// What is wrong with them; also if they don't belong together.
    pub fn read(certificate: PathBuf, key: PathBuf) -> Result<Self, String> {
        let current = certificates::certified_key(&certificate, &key)?;
        Ok(Self {
            certificate,
            key,
            current: ArcSwap::from_pointee(current),
        })
    }

    /// What a server that shows it is set up with, whatever it speaks.
    ///
    /// # Errors
    ///
    /// None that was ever seen: the provider has what TLS 1.2 and 1.3 need.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(certificates::provider());
        let builder = builder.with_safe_default_protocol_versions()?;
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        Ok(builder.with_no_client_auth().with_cert_resolver(resolver))
    }

    /// Makes the handshakes of a server that speaks HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    ///
    /// Those of [`server_config`](Self::server_config).
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, rustls::Error> {
        let mut config = self.server_config()?;
        config.alpn_protocols = vec![HTTP_2.to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Looks at the files for ever. What can't be used, because only one of the
    /// two is written yet, or for good, leaves the old one in use and is logged
    /// once.
    pub async fn renew(self: Arc<Self>) {
        let mut pace = interval(LOOK);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            pace.tick().await;
            let files = Arc::clone(&self);
            let looking = tokio::task::spawn_blocking(move || files.look());
            match looking.await {
                Ok(Ok(renewed)) => {
                    if renewed {
                        info!(
                            "the certificate in {} is used now",
                            self.certificate.display()
                        );
                    }
                    told = None;
                }
                Ok(Err(reason)) if told.as_ref() != Some(&reason) => {
                    warn!("the certificate stays the one that was read before: {reason}");
                    told = Some(reason);
                }
                // Told already; or a panic, which was reported by the panic hook.
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    /// Reads the files; tells whether another certificate was found. Those who are
    /// connected keep theirs.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn look(&self) -> Result<bool, String> {
        let found = certificates::certified_key(&self.certificate, &self.key)?;
        let is_new = found.cert != self.current.load().cert;
        if is_new {
            self.current.store(Arc::new(found));
        }
        Ok(is_new)
    }
}

/// Whether client and server have agreed on HTTP/2.
pub fn speaks_http2<I>(stream: &TlsStream<I>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP_2)
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}
