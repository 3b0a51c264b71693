//! TLS settings, built here for both directions: outwards to endpoints, inwards to the database. Always rustls with ring, never
//! a process-wide default, so that a library cannot change what is verified.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read certificates from {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("{path} holds no PEM certificate")]
    Empty { path: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// For requests to endpoints: the system's roots and, beside them, those of `extra_ca_file`. HTTP/2 is offered by ALPN.
pub(crate) fn outbound(extra_ca_file: Option<&Path>) -> Result<ClientConfig, CertificateError> {
    let mut roots = system_roots();
    if let Some(path) = extra_ca_file {
        add_file(&mut roots, path)?;
    }
    if roots.is_empty() {
        tracing::warn!(
            "no root certificates found; every https endpoint will be refused. Install ca-certificates or pass --ca-file"
        );
    }
    let mut config = verifying(roots)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// For the database: verified against `ca_file` alone if there is one, else against the system's roots.
pub(crate) fn database(ca_file: Option<&Path>) -> Result<ClientConfig, CertificateError> {
    let roots = match ca_file {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            add_file(&mut roots, path)?;
            roots
        }
        None => system_roots(),
    };
    verifying(roots)
}

/// For `sslmode=prefer` without a CA: encrypted if the server can, to whoever answers.
///
/// That is what libpq's `prefer` does. An attacker who could present a false certificate could as well answer that
/// the server has no TLS, so verifying here would protect nobody and would lock out every self-signed server.
pub(crate) fn opportunistic() -> Result<ClientConfig, CertificateError> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    Ok(builder(provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
        .with_no_client_auth())
}

fn verifying(roots: RootCertStore) -> Result<ClientConfig, CertificateError> {
    Ok(builder(Arc::new(ring::default_provider()))?.with_root_certificates(roots).with_no_client_auth())
}

fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, CertificateError> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(CertificateError::Setup)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!(%error, "a system certificate could not be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), CertificateError> {
    let unreadable =
        |reason: String| CertificateError::Unreadable { path: path.display().to_string(), reason };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))?;
    let mut added = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
        added += 1;
    }
    if added == 0 {
        return Err(CertificateError::Empty { path: path.display().to_string() });
    }
    Ok(())
}

/// Checks that the peer holds the key of its certificate, and not whose certificate it is.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
