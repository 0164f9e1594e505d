//! The certificate authority of the tests.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tidings::tls::{certificates, server_certificate::Certificate};

use crate::support::dev::DataFolder;

/// An authority, and a folder for the certificates that it signs.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: DataFolder,
}

/// The files of a certificate and its key.
#[derive(Clone)]
pub struct Certified {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(
            DnType::CommonName,
            format!("authority {}", rand::random::<u64>()),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let folder = DataFolder::new();
        fs::create_dir(folder.path()).expect("a folder");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        fs::write(folder.path().join("authority.crt"), issuer.pem()).expect("a file");
        Self { issuer, folder }
    }

    /// The file with the authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("authority.crt")
    }

    /// A certificate with this common name and these alternative names, and its key, both in PEM.
    pub fn sign(&self, name: &str, alternatives: &[&str]) -> (String, String) {
        let alternatives: Vec<_> = alternatives.iter().map(|name| (*name).into()).collect();
        let mut params = CertificateParams::new(alternatives).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// The same in files named after `name`. Existing files of that name are replaced.
    pub fn issue(&self, name: &str, alternatives: &[&str]) -> Certified {
        let (certificate, key) = self.sign(name, alternatives);
        let path = |ending: &str| self.folder.path().join(format!("{name}.{ending}"));
        let certified = Certified {
            certificate: path("crt"),
            key: path("key"),
        };
        fs::write(&certified.certificate, certificate).expect("a file");
        fs::write(&certified.key, key).expect("a file");
        certified
    }

    /// The configuration of a server with a certificate for this name.
    pub fn server(&self, name: &str) -> Arc<ServerConfig> {
        let own = self.issue(name, &[name]);
        let own = Certificate::read(own.certificate, own.key).expect("a certificate");
        Arc::new(Arc::new(own).server_config().expect("a server"))
    }

    /// The configuration of a client that trusts only this authority.
    pub fn client(&self, protocol: &str) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(certificates::provider());
        let builder = builder.with_safe_default_protocol_versions();
        let mut config = builder
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.into()];
        Arc::new(config)
    }
}

impl Certified {
    /// The settings for the command line.
    pub fn settings(&self) -> [String; 2] {
        let shown = |path: &Path| path.display().to_string();
        [
            format!("--tls-cert={}", shown(&self.certificate)),
            format!("--tls-key={}", shown(&self.key)),
        ]
    }
}
