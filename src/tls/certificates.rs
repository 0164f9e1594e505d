//! Reads certificates and keys from PEM files, and selects the cryptographic provider.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};

/// Why a certificate or a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFileError {
    #[error("{} can't be read", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} can't be read as PEM", path.display())]
    NotPem { path: PathBuf, source: pem::Error },
    #[error("{} contains no readable key: it must be PEM, and not encrypted", .0.display())]
    NoKey(PathBuf),
    #[error("{} contains no certificate: it must be PEM", .0.display())]
    NoCertificate(PathBuf),
    #[error(
        "the key in {} doesn't match the first certificate in {}",
        key.display(), certificate.display()
    )]
    OtherKey { certificate: PathBuf, key: PathBuf },
    #[error("{} and {} can't be used together", certificate.display(), key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("{} can't be used", path.display())]
    Authority {
        path: PathBuf,
        source: rustls::Error,
    },
    /// The text of the error names its cause.
    #[error("the system's certificates can't be read: {0}")]
    System(String),
    #[error("the system has no certificates: install the package ca-certificates")]
    NoSystem,
}

/// The provider that all of Tidings uses. It is passed explicitly wherever TLS is set up,
/// because the process default could be set by another library.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Reads a certificate with its chain, and its key.
///
/// # Errors
///
/// A message that names the file; also if certificate and key don't belong together.
pub fn certified_key(certificate: &Path, key: &Path) -> Result<CertifiedKey, CertificateFileError> {
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| match error {
        pem::Error::NoItemsFound => CertificateFileError::NoKey(key.to_owned()),
        error => not_pem(key, error),
    })?;
    CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => CertificateFileError::OtherKey {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        },
        source => CertificateFileError::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        },
    })
}

/// Reads the root certificates in a file.
///
/// # Errors
///
/// A message that names the file.
pub fn authorities(path: &Path) -> Result<RootCertStore, CertificateFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| CertificateFileError::Authority {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(roots)
}

/// The root certificates that this machine trusts.
///
/// # Errors
///
/// A message if there are none.
pub fn system_authorities() -> Result<RootCertStore, CertificateFileError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // System stores contain some certificates that can't be parsed; the others suffice.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(match found.errors.first() {
            Some(error) => CertificateFileError::System(error.to_string()),
            None => CertificateFileError::NoSystem,
        });
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateFileError> {
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| not_pem(path, error))?;
    if certificates.is_empty() {
        return Err(CertificateFileError::NoCertificate(path.to_owned()));
    }
    Ok(certificates)
}

/// Reads a file without the UTF-8 byte order mark that Windows editors put at its
/// beginning, which would hide the first line.
fn read(path: &Path) -> Result<Vec<u8>, CertificateFileError> {
    const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";
    let mut bytes = fs::read(path).map_err(|source| CertificateFileError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    if bytes.starts_with(UTF_8_MARK) {
        bytes.drain(..UTF_8_MARK.len());
    }
    Ok(bytes)
}

fn not_pem(path: &Path, source: pem::Error) -> CertificateFileError {
    CertificateFileError::NotPem {
        path: path.to_owned(),
        source,
    }
}
