//! TLS by rustls: as a server from two PEM files, as a client by what this machine trusts.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// An acceptor with this certificate chain and key.
///
/// # Errors
/// A sentence that names the file.
pub fn acceptor(certificates: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let cannot = |path: &Path, why: String| format!("cannot read {}: {why}", path.display());
    let chain = CertificateDer::pem_file_iter(certificates)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| cannot(certificates, error.to_string()))?;
    if chain.is_empty() {
        return Err(cannot(certificates, "it holds no certificate".into()));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| cannot(key, error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| format!("the certificate and its key do not work: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// How to speak TLS with servers whose certificates this machine trusts: those of the system, or of the file or folder that
/// `SSL_CERT_FILE` or `SSL_CERT_DIR` names.
///
/// # Errors
/// A sentence, if there are none.
pub fn client() -> Result<Arc<ClientConfig>, String> {
    // Read once: commands open a connection for every request.
    static CLIENT: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    CLIENT.get_or_init(trusting).clone()
}

fn trusting() -> Result<Arc<ClientConfig>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (known, _) = roots.add_parsable_certificates(found.certs);
    if known == 0 {
        let why = found.errors.first().map_or_else(|| "none are installed".into(), ToString::to_string);
        return Err(format!(
            "https needs certificates to trust, and {why}; install ca-certificates, or name a file by SSL_CERT_FILE"
        ));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS does not work here: {error}"))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}
