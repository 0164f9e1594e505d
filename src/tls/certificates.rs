//! Reads certificates and keys from PEM files, and selects the cryptographic provider.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};

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
pub fn certified_key(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| match error {
        pem::Error::NoItemsFound => format!(
            "{} contains no readable key: it must be PEM, and not encrypted",
            key.display()
        ),
        error => unreadable(key, &error),
    })?;
    CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => format!(
            "the key in {} doesn't match the first certificate in {}",
            key.display(),
            certificate.display()
        ),
        error => format!(
            "{} and {} can't be used together: {error}",
            certificate.display(),
            key.display()
        ),
    })
}

/// Reads the root certificates in a file.
///
/// # Errors
///
/// A message that names the file.
pub fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{} can't be used: {error}", path.display()))?;
    }
    Ok(roots)
}

/// The root certificates that this machine trusts.
///
/// # Errors
///
/// A message if there are none.
pub fn system_authorities() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // System stores contain some certificates that can't be parsed; the others suffice.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(match found.errors.first() {
            Some(error) => format!("the system's certificates can't be read: {error}"),
            None => "the system has no certificates: install the package ca-certificates".into(),
        });
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(path, &error))?;
    if certificates.is_empty() {
        return Err(format!(
            "{} contains no certificate: it must be PEM",
            path.display()
        ));
    }
    Ok(certificates)
}

/// Reads a file without the UTF-8 byte order mark that Windows editors put at its
/// beginning, which would hide the first line.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";
    let mut bytes =
        fs::read(path).map_err(|error| format!("{} can't be read: {error}", path.display()))?;
    if bytes.starts_with(UTF_8_MARK) {
        bytes.drain(..UTF_8_MARK.len());
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: &pem::Error) -> String {
    format!("{} can't be read as PEM: {error}", path.display())
}
