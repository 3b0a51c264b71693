use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// A certificate authority of the test's own. Its file ends with it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

/// A server's certificate with its key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    pub fn new() -> Authority {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let mut parameters = CertificateParams::new([]).expect("no names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        // Two of one name would be taken for one another, and only the signature be found wrong.
        parameters.distinguished_name.push(DnType::CommonName, format!("authority {number}"));
        let issuer = CertifiedIssuer::self_signed(parameters, new_key()).expect("a root certificate");
        let file = std::env::temp_dir().join(format!("orbhook-tests-{}-{number}.pem", process::id()));
        fs::write(&file, issuer.pem()).expect("the authority's file");
        Authority { issuer, file }
    }

    /// PEM, for `--ca-file`.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// A certificate for 127.0.0.1 that is in order.
    pub fn issue(&self) -> Identity {
        self.issue_for("127.0.0.1", |_| {})
    }

    /// A certificate for a name or address, with something about it changed.
    pub fn issue_for(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut parameters = for_server(name);
        change(&mut parameters);
        let key = new_key();
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        Identity::new(certificate.der().clone(), &key)
    }

    /// One that has expired.
    pub fn issue_expired(&self) -> Identity {
        self.issue_for("127.0.0.1", |parameters| {
            parameters.not_before = date_time_ymd(2020, 1, 1);
            parameters.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    /// One that becomes valid in a far future.
    pub fn issue_for_the_future(&self) -> Identity {
        self.issue_for("127.0.0.1", |parameters| {
            parameters.not_before = date_time_ymd(2090, 1, 1);
            parameters.not_after = date_time_ymd(2091, 1, 1);
        })
    }

    /// One that is for clients and not for servers.
    pub fn issue_for_clients(&self) -> Identity {
        self.issue_for("127.0.0.1", |parameters| {
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    /// Accepts only clients that this authority vouches for.
    pub fn acceptor_that_wants_clients_vouched_for(&self, identity: Identity) -> TlsAcceptor {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("the authority is one");
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .expect("a verifier");
        let config = builder().with_client_cert_verifier(verifier);
        acceptor(config.with_single_cert(vec![identity.certificate], identity.key), &[b"http/1.1"])
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // A file that stays behind holds nothing secret.
        let _ = fs::remove_file(&self.file);
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

impl Identity {
    /// A certificate for 127.0.0.1 that vouches for itself.
    pub fn self_signed() -> Identity {
        let key = new_key();
        let certificate = for_server("127.0.0.1").self_signed(&key).expect("a certificate");
        Identity::new(certificate.der().clone(), &key)
    }

    /// Speaks TLS with it, and by ALPN the first of these protocols that the client offers.
    pub fn acceptor(self, protocols: &[&[u8]]) -> TlsAcceptor {
        let config = builder().with_no_client_auth();
        acceptor(config.with_single_cert(vec![self.certificate], self.key), protocols)
    }

    fn new(certificate: CertificateDer<'static>, key: &KeyPair) -> Identity {
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key as PKCS #8");
        Identity { certificate, key }
    }
}

fn acceptor(config: Result<ServerConfig, tokio_rustls::rustls::Error>, protocols: &[&[u8]]) -> TlsAcceptor {
    let mut config = config.expect("certificate and key belong together");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

fn builder() -> tokio_rustls::rustls::ConfigBuilder<ServerConfig, tokio_rustls::rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has them")
}

fn for_server(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new([name.to_owned()]).expect("a name");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}
