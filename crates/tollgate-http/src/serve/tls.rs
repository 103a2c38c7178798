//! TLS that ends here: a certificate, its key, and the handshake.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::stall::Unstalled;

/// For a client to say who it is not.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What every TLS connection begins with.
const HANDSHAKE: u8 = 0x16;

/// To who speaks HTTP where HTTPS is spoken.
const NOT_HTTPS: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    This port speaks HTTPS: begin the URL with https://\n";

/// The server's certificate and key.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl Tls {
    /// Reads PEM files: the certificate with the chain behind it, and the key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let wrong = |setting: &str, path: &Path, problem: &dyn std::fmt::Display| {
            TlsError(format!("{setting}, `{}`: {problem}", path.display()))
        };
        let chain =
            CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| wrong("TLS_CERT", certificate, &error))?;
        if chain.is_empty() {
            return Err(wrong("TLS_CERT", certificate, &"there is no certificate in it, in PEM form"));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("TLS_KEY", key, &error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, private));
        let mut config = config.map_err(|error| {
            wrong("TLS_KEY", key, &format!("it does not go with the certificate of TLS_CERT: {error}"))
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Shakes hands. Who speaks plain HTTP is told so.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        patience: Duration,
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut first = [0];
        let shaken = async {
            if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
                let mut stream = Unstalled::new(stream, patience);
                stream.write_all(NOT_HTTPS.as_bytes()).await?;
                stream.shutdown().await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not TLS"));
            }
            self.0.accept(stream).await
        };
        timeout(HANDSHAKE_TIMEOUT, shaken).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
