//! Whom to believe over https.

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use std::{path::PathBuf, sync::Arc};
use tokio_rustls::TlsConnector;

/// Which certificates of a server are good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those that this machine's own authorities vouch for.
    #[default]
    Machine,
    /// Those that the authorities of a PEM file vouch for.
    Authorities(PathBuf),
    /// Any: whoever stands between can read and change everything.
    Anyone,
}

impl Trust {
    pub(super) fn connector(&self, host: &str) -> Result<(TlsConnector, ServerName<'static>), String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = match self {
            Self::Machine => builder
                .with_platform_verifier()
                .map_err(|error| format!("cannot use this machine's certificates: {error}"))?
                .with_no_client_auth(),
            Self::Authorities(path) => {
                let name = path.display();
                let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
                let certificates = read.map_err(|error| format!("cannot read certificates from {name}: {error}"))?;
                let mut roots = RootCertStore::empty();
                let (added, ignored) = roots.add_parsable_certificates(certificates);
                if added == 0 {
                    return Err(format!("{name} holds no usable certificate in PEM format ({ignored} unusable)"));
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Self::Anyone => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(BelieveAnyone(provider)))
                .with_no_client_auth(),
        };
        let name = host.to_owned().try_into().map_err(|_| format!("`{host}` is no name a certificate can hold"))?;
        Ok((TlsConnector::from(Arc::new(config)), name))
    }
}

/// Takes any certificate, but checks that the server holds its key.
#[derive(Debug)]
struct BelieveAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for BelieveAnyone {
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
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
