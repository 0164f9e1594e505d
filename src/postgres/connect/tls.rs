//! How a connection to Postgres is encrypted, and how the server's certificate is
//! verified: libpq's `sslmode` and related parameters.

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    version::{TLS12, TLS13},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{conninfo::ConnInfo, url::DatabaseUrlError};
use crate::tls::certificates::{self, CertificateFileError};

/// The ALPN name of Postgres' protocol. Version 17 servers require it for direct TLS.
const ALPN: &[u8] = b"postgresql";

/// libpq's modes, from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    const NAMES: [(&str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    pub(super) fn name(self) -> &'static str {
        let names = Self::NAMES.iter();
        names
            .filter(|(_, mode)| *mode == self)
            .map(|(name, _)| *name)
            .next()
            .unwrap_or_default()
    }

    /// What to try, and what to try if the server rejects that.
    pub(super) fn attempts(self) -> (TlsAttempt, Option<TlsAttempt>) {
        match self {
            Self::Disable => (TlsAttempt::Clear, None),
            Self::Allow => (TlsAttempt::Clear, Some(TlsAttempt::Encrypted)),
            Self::Prefer => (TlsAttempt::EncryptedIfOffered, Some(TlsAttempt::Clear)),
            Self::Require | Self::VerifyCa | Self::VerifyFull => (TlsAttempt::Encrypted, None),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsAttempt {
    Clear,
    EncryptedIfOffered,
    Encrypted,
}

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// A Unix socket, over which libpq and Postgres never encrypt.
    Socket,
    /// This machine, by TCP.
    Loopback,
    Remote,
}

/// The certificate authority that must have signed the server's certificate.
#[derive(Clone)]
enum Authority {
    File(PathBuf),
    /// Read once, because there are many.
    System(Arc<RootCertStore>),
}

/// Why TLS with a server is impossible.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Files(#[from] CertificateFileError),
    #[error(transparent)]
    Rustls(#[from] Error),
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
    #[error(
        "{0}; the server's certificate is a CA certificate: the server needs a certificate of its \
         own, signed by that CA (a self-signed one must not be CA:TRUE)"
    )]
    CaCertificate(Error),
}

/// A connection string's parameters for encryption.
#[derive(Clone)]
pub(super) struct Tls {
    mode: Option<Mode>,
    authority: Option<Authority>,
    /// The files of our own certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
    versions: Vec<&'static SupportedProtocolVersion>,
    names_server: bool,
    /// Starts with the TLS handshake, without negotiation.
    pub(super) is_direct: bool,
}

impl Tls {
    /// Reads the parameters for servers that are reached in these ways.
    pub(super) fn of(given: &ConnInfo, reaches: &[Reach]) -> Result<Self, DatabaseUrlError> {
        let mode = match given.get("sslmode") {
            None => None,
            Some(name) => {
                let known = Mode::NAMES.iter().find(|(known, _)| *known == name);
                let (_, mode) = known.ok_or(
                    "sslmode must be disable, allow, prefer, require, verify-ca or verify-full",
                )?;
                Some(*mode)
            }
        };
        let authority = match given.get("sslrootcert") {
            None => None,
            Some("system") if mode.is_some_and(|mode| mode < Mode::VerifyFull) => {
                return Err(
                    "sslrootcert=system requires sslmode=verify-full: anyone can get a certificate \
                     for some name from these authorities"
                        .into(),
                );
            }
            Some("system") => Some(Authority::System(Arc::new(
                certificates::system_authorities().map_err(TlsError::from)?,
            ))),
            Some(path) => Some(Authority::File(path.into())),
        };
        if let (Some(mode @ (Mode::VerifyCa | Mode::VerifyFull)), None) = (mode, &authority) {
            return Err(format!(
                "sslmode={} requires sslrootcert: a file with the certificate of the authority \
                 that signed the server's certificate, or `system` for the authorities that this \
                 machine trusts",
                mode.name()
            )
            .into());
        }
        let identity = match (given.get("sslcert"), given.get("sslkey")) {
            _ if given.get("sslcertmode") == Some("disable") => None,
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            _ => return Err("sslcert and sslkey must be set together".into()),
        };
        let is_direct = match given.get("sslnegotiation") {
            None | Some("postgres") => false,
            Some("direct") => true,
            Some(_) => return Err("sslnegotiation must be postgres or direct".into()),
        };
        let tls = Self {
            mode,
            authority,
            identity,
            versions: versions(given)?,
            names_server: given.get("sslsni") != Some("0"),
            is_direct,
        };
        tls.prove(reaches)?;
        Ok(tls)
    }

    /// Finds problems at startup that would make each connection fail.
    fn prove(&self, reaches: &[Reach]) -> Result<(), DatabaseUrlError> {
        let modes = reaches
            .iter()
            .filter(|reach| **reach != Reach::Socket)
            .map(|&reach| self.mode(reach));
        for mode in modes {
            if self.is_direct && mode < Mode::Require {
                return Err(format!(
                    "sslnegotiation=direct requires sslmode=require or stronger, and it is {}",
                    mode.name()
                )
                .into());
            }
            if mode != Mode::Disable {
                self.connector(mode)?;
            }
        }
        Ok(())
    }

    /// The mode for a server that is reached in this way. Without `sslmode`, nothing
    /// crosses a network unencrypted.
    pub(super) fn mode(&self, reach: Reach) -> Mode {
        if reach == Reach::Socket {
            return Mode::Disable;
        }
        match (self.mode, &self.authority) {
            (None, Some(Authority::System(_))) => Mode::VerifyFull,
            // As in libpq: a given authority is never ignored.
            (None | Some(Mode::Require), Some(_)) => Mode::VerifyCa,
            (Some(mode), _) => mode,
            (None, None) if reach == Reach::Loopback => Mode::Prefer,
            (None, None) => Mode::Require,
        }
    }

    /// Creates the TLS connector. The files are read each time, so that renewed
    /// certificates need no restart.
    pub(super) fn connector(&self, mode: Mode) -> Result<MakeRustlsConnect, TlsError> {
        let provider = certificates::provider();
        let verifier = self.verifier(mode, &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let own = certificates::certified_key(certificate, key)?;
                builder
                    .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)))
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = self.names_server;
        Ok(MakeRustlsConnect::new(config))
    }

    fn verifier(
        &self,
        mode: Mode,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        let roots = match &self.authority {
            None => None,
            Some(Authority::System(roots)) => Some(Arc::clone(roots)),
            Some(Authority::File(path)) => Some(Arc::new(certificates::authorities(path)?)),
        };
        match (mode, roots) {
            (Mode::VerifyFull, Some(roots)) => {
                let provider = Arc::clone(provider);
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider);
                Ok(verifier.build()?)
            }
            (_, roots) => Ok(Arc::new(AnyName {
                roots,
                provider: Arc::clone(provider),
            })),
        }
    }
}

fn versions(given: &ConnInfo) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
    let mut versions = vec![&TLS13, &TLS12];
    match given.get("ssl_min_protocol_version") {
        None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2") => {}
        Some("TLSv1.3") => versions.retain(|version| *version == &TLS13),
        Some(_) => return Err("ssl_min_protocol_version must be TLSv1.2 or TLSv1.3".to_owned()),
    }
    match given.get("ssl_max_protocol_version") {
        None | Some("TLSv1.3") => {}
        Some("TLSv1.2") => versions.retain(|version| *version == &TLS12),
        Some(_) => return Err("ssl_max_protocol_version must be TLSv1.2 or TLSv1.3".to_owned()),
    }
    if versions.is_empty() {
        return Err("ssl_min_protocol_version is above ssl_max_protocol_version".to_owned());
    }
    Ok(versions)
}

/// Whether the server doesn't support TLS. tokio-postgres reports this only as text.
pub(super) fn is_not_offered(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|source| source.to_string() == "server does not support TLS")
}

/// Why one side rejected the other, if that is what happened, as opposed to a broken
/// connection.
pub(super) fn failure(error: &tokio_postgres::Error) -> Option<TlsError> {
    let source = std::error::Error::source(error)?;
    let source = source.downcast_ref::<io::Error>()?.get_ref()?;
    Some(match source.downcast_ref::<Error>()? {
        error @ Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("CaUsedAsEndEntity") =>
        {
            TlsError::CaCertificate(error.clone())
        }
        error => error.clone().into(),
    })
}

/// Accepts a certificate for any name: signed by one of the roots or, without roots, by
/// anyone. In each case the server must prove that it has the certificate's key.
#[derive(Debug)]
struct AnyName {
    roots: Option<Arc<RootCertStore>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(given: &str, reach: Reach) -> Result<Mode, String> {
        let given = ConnInfo::parse(given)?;
        let tls = Tls::of(&given, &[]).map_err(|error| error.to_string())?;
        Ok(tls.mode(reach))
    }

    #[test]
    fn nothing_crosses_a_network_in_clear_text_unless_it_is_asked_for() {
        let remote = |given| mode(given, Reach::Remote);
        assert_eq!(remote(""), Ok(Mode::Require));
        assert_eq!(remote("sslmode="), Ok(Mode::Require));
        assert_eq!(remote("sslmode=disable"), Ok(Mode::Disable));
        assert_eq!(remote("sslmode=prefer"), Ok(Mode::Prefer));
        assert_eq!(remote("sslmode=allow"), Ok(Mode::Allow));
        assert_eq!(mode("", Reach::Loopback), Ok(Mode::Prefer));
        assert_eq!(
            mode("sslmode=verify-full sslrootcert=x", Reach::Socket),
            Ok(Mode::Disable)
        );
    }

    #[test]
    fn who_names_an_authority_gets_it_checked() {
        for reach in [Reach::Loopback, Reach::Remote] {
            for given in ["sslrootcert=x", "sslrootcert=x sslmode=require"] {
                assert_eq!(mode(given, reach), Ok(Mode::VerifyCa), "{given}");
            }
            assert_eq!(
                mode("sslrootcert=x sslmode=verify-full", reach),
                Ok(Mode::VerifyFull)
            );
        }
    }

    #[test]
    fn what_can_not_be_done_is_refused() {
        for (given, named) in [
            ("sslmode=no-verify", "sslmode"),
            ("sslmode=verify-full", "sslrootcert"),
            ("sslmode=verify-ca", "sslrootcert"),
            ("sslmode=require sslrootcert=system", "verify-full"),
            ("sslcert=x", "sslkey"),
            ("sslkey=x", "sslcert"),
            ("sslnegotiation=tls", "sslnegotiation"),
            ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version"),
            ("ssl_max_protocol_version=TLSv1", "ssl_max_protocol_version"),
            (
                "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
                "above",
            ),
        ] {
            let error = mode(given, Reach::Remote).expect_err(given);
            assert!(error.contains(named), "{given}: {error}");
        }
        let direct = ConnInfo::parse("sslnegotiation=direct").expect("pairs");
        let refused = Tls::of(&direct, &[Reach::Loopback]).err();
        assert!(refused.expect("too weak").to_string().contains("require"));
        assert!(Tls::of(&direct, &[Reach::Remote]).is_ok());
    }
}
