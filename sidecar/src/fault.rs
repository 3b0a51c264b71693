//! Names what went wrong with a request: a class that is counted, and a sentence that says what to do.
//!
//! Told apart by the types in the chain of causes, never by their text: texts change between versions of a library.

use std::{error::Error as StdError, io};

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use crate::{
    delivery::{ErrorClass, Fault},
    resolve::Unresolved,
};

/// How far the attempt had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Connect,
    FirstByte,
    Body { status: u16 },
}

/// The total timeout ran down in `phase`.
pub(crate) fn timed_out(phase: Phase, timeout_seconds: f64) -> Fault {
    match phase {
        Phase::Connect => slow_connect(),
        Phase::FirstByte => Fault::new(
            ErrorClass::TimeoutFirstByte,
            format!(
                "no answer within {timeout_seconds} s; the endpoint should answer first and work afterwards, or raise timeoutSeconds"
            ),
        ),
        Phase::Body { status } => Fault::new(
            ErrorClass::TimeoutBody,
            format!("answered {status}, but the body did not end within {timeout_seconds} s"),
        ),
    }
}

/// What a failed request was about.
pub(crate) fn classify(error: &reqwest::Error, phase: Phase, timeout_seconds: f64) -> Fault {
    let fault = chain(error).find_map(|cause| name_cause(cause, phase));
    let fault = fault.unwrap_or_else(|| {
        if error.is_timeout() {
            return timed_out(phase, timeout_seconds);
        }
        if error.is_builder() || error.is_request() && phase != Phase::Connect {
            return Fault::new(ErrorClass::Internal, "the request could not be sent");
        }
        match phase {
            Phase::Connect => Fault::new(ErrorClass::ConnectionRefused, "the connection could not be made"),
            _ => Fault::new(ErrorClass::MalformedResponse, "what came back is not an HTTP response"),
        }
    });
    match phase {
        Phase::Body { status } if fault.class != ErrorClass::TimeoutBody => {
            Fault::new(fault.class, format!("answered {status}, but the body broke off: {}", fault.reason))
        }
        _ => fault,
    }
}

/// The error and its causes, outermost first. An `io::Error` hides what it wraps from `source`, so it is opened.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

fn name_cause(cause: &(dyn StdError + 'static), phase: Phase) -> Option<Fault> {
    if let Some(unresolved) = cause.downcast_ref::<Unresolved>() {
        return Some(name_unresolved(unresolved));
    }
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(name_tls(error));
    }
    if let Some(error) = cause.downcast_ref::<h2::Error>() {
        return name_h2(error);
    }
    if let Some(error) = cause.downcast_ref::<hyper::Error>() {
        return name_http(error);
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return name_io(error, phase);
    }
    None
}

fn name_unresolved(unresolved: &Unresolved) -> Fault {
    match unresolved {
        Unresolved::Name(_) | Unresolved::Address(_) => Fault::new(
            ErrorClass::AddressBlocked,
            format!("{unresolved}; open its network with --allow-network if that is meant"),
        ),
        Unresolved::Lookup(_) | Unresolved::Empty => Fault::new(
            ErrorClass::Dns,
            format!("{unresolved}; check the host name and the DNS of the machine orbhook runs on"),
        ),
    }
}

fn name_tls(error: &rustls::Error) -> Fault {
    let reason = match error {
        rustls::Error::InvalidCertificate(certificate) => name_certificate(certificate),
        rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        )
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "no common protocol: the endpoint offers neither TLS 1.2 nor TLS 1.3".to_owned()
        }
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(AlertDescription::InsufficientSecurity) => {
            "no common cipher: the endpoint must offer ECDHE with AES-GCM or ChaCha20".to_owned()
        }
        // In TLS 1.2 a server that misses a client certificate has no other alert for it.
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            "no common cipher: the endpoint must offer ECDHE with AES-GCM or ChaCha20, and ask for no client certificate"
                .to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the endpoint asks for a client certificate, which orbhook does not send".to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the endpoint does not serve this host name".to_owned()
        }
        rustls::Error::NoApplicationProtocol
        | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "no common protocol: the endpoint offers neither HTTP/1.1 nor HTTP/2".to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!("the endpoint refused the handshake: {alert:?}"),
        rustls::Error::InvalidMessage(_) => {
            "what answers is not TLS; is this an http port behind an https URL?".to_owned()
        }
        rustls::Error::NoCertificatesPresented => "the endpoint shows no certificate".to_owned(),
        _ => "the handshake failed".to_owned(),
    };
    Fault::new(ErrorClass::Tls, format!("TLS: {reason}"))
}

fn name_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the certificate has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet; check the clock of the machine orbhook runs on".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate is for another host name".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "the certificate's issuer is unknown; the endpoint must send its whole chain, or pass a private CA with --ca-file"
                .to_owned()
        }
        CertificateError::Revoked => "the certificate has been revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate is not meant for servers".to_owned()
        }
        CertificateError::BadSignature => "the certificate's signature is wrong".to_owned(),
        // rustls-webpki reports a self-signed end entity that is used as a CA this way.
        CertificateError::Other(_) => "the certificate cannot be used as a server certificate".to_owned(),
        _ => "the certificate is not acceptable".to_owned(),
    }
}

fn name_h2(error: &h2::Error) -> Option<Fault> {
    if error.is_io() {
        return None;
    }
    // h2 reports what it broke off itself, because the endpoint broke the rules, by the same names.
    if error.is_remote() && (error.is_go_away() || error.is_reset()) {
        return Some(Fault::new(ErrorClass::Reset, "the endpoint ended the HTTP/2 stream without an answer"));
    }
    Some(Fault::new(ErrorClass::MalformedResponse, "the endpoint broke the rules of HTTP/2"))
}

fn name_http(error: &hyper::Error) -> Option<Fault> {
    if error.is_parse_too_large() {
        return Some(Fault::new(
            ErrorClass::MalformedResponse,
            "the response has too many or too large headers",
        ));
    }
    if error.is_parse() {
        return Some(Fault::new(ErrorClass::MalformedResponse, "what came back is not an HTTP response"));
    }
    if error.is_incomplete_message() {
        return Some(Fault::new(
            ErrorClass::Reset,
            "the endpoint closed the connection before the response was complete",
        ));
    }
    if error.is_canceled() || error.is_closed() {
        return Some(Fault::new(
            ErrorClass::Reset,
            "the endpoint closed the connection before the request was sent; over https, it may ask for a client certificate, which orbhook does not send",
        ));
    }
    None
}

fn name_io(error: &io::Error, phase: Phase) -> Option<Fault> {
    let connecting = phase == Phase::Connect;
    let fault = match error.kind() {
        io::ErrorKind::ConnectionRefused => Fault::new(
            ErrorClass::ConnectionRefused,
            "connection refused; nothing listens on that port, or a firewall rejects it",
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            Fault::new(ErrorClass::ConnectionRefused, "there is no route to the endpoint")
        }
        io::ErrorKind::AddrNotAvailable => Fault::new(
            ErrorClass::ConnectionRefused,
            "no local address or port is left to dial from; check IPv6 and the range of ephemeral ports",
        ),
        io::ErrorKind::TimedOut if connecting => slow_connect(),
        io::ErrorKind::UnexpectedEof if connecting => {
            Fault::new(ErrorClass::Tls, "TLS: the endpoint closed the connection during the handshake")
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::TimedOut => {
            Fault::new(ErrorClass::Reset, "the connection broke before the response was complete")
        }
        // hyper reports broken chunks this way. An io::Error that only wraps another cause is left to that one.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
            if !connecting && error.get_ref().is_none_or(is_plain) =>
        {
            Fault::new(ErrorClass::MalformedResponse, "the response's chunks are malformed")
        }
        _ => return name_exhaustion(error),
    };
    Some(fault)
}

/// An error made from text alone, with no typed cause further in.
fn is_plain(error: &(dyn StdError + Send + Sync + 'static)) -> bool {
    error.source().is_none() && !error.is::<rustls::Error>()
}

fn name_exhaustion(error: &io::Error) -> Option<Fault> {
    // EMFILE and ENFILE have no stable ErrorKind.
    const NO_DESCRIPTORS: [i32; 2] = [24, 23];
    error.raw_os_error().filter(|code| NO_DESCRIPTORS.contains(code)).map(|_| {
        Fault::new(
            ErrorClass::Internal,
            "the sidecar has no file descriptors left; raise its limit or lower --concurrency",
        )
    })
}

fn slow_connect() -> Fault {
    Fault::new(
        ErrorClass::TimeoutConnect,
        "no connection in time; check that the host is up and that no firewall drops packets",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(error: impl StdError + 'static, phase: Phase) -> Option<Fault> {
        chain(&error).find_map(|cause| name_cause(cause, phase))
    }

    #[test]
    fn the_reason_of_a_failed_handshake_is_found_inside_an_io_error_and_said_in_words() {
        let certificate = rustls::Error::InvalidCertificate;
        for (error, words) in [
            (certificate(CertificateError::Expired), "has expired"),
            (certificate(CertificateError::NotValidForName), "another host name"),
            (certificate(CertificateError::UnknownIssuer), "issuer is unknown"),
            (certificate(CertificateError::NotValidYet), "not valid yet"),
            (rustls::Error::AlertReceived(AlertDescription::ProtocolVersion), "no common protocol"),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), "no common cipher"),
            (rustls::Error::AlertReceived(AlertDescription::CertificateRequired), "client certificate"),
            (rustls::Error::NoApplicationProtocol, "neither HTTP/1.1 nor HTTP/2"),
            (
                rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol),
                "neither HTTP/1.1 nor HTTP/2",
            ),
        ] {
            let wrapped = io::Error::new(io::ErrorKind::InvalidData, error);
            let twice = io::Error::other(wrapped);
            let fault = name(twice, Phase::Connect).unwrap();
            assert_eq!(fault.class, ErrorClass::Tls);
            assert!(fault.reason.contains(words), "{words}: {}", fault.reason);
        }
    }

    #[test]
    fn the_same_io_error_means_another_thing_in_another_phase() {
        for (kind, phase, class) in [
            (io::ErrorKind::UnexpectedEof, Phase::Connect, ErrorClass::Tls),
            (io::ErrorKind::UnexpectedEof, Phase::FirstByte, ErrorClass::Reset),
            (io::ErrorKind::TimedOut, Phase::Connect, ErrorClass::TimeoutConnect),
            (io::ErrorKind::TimedOut, Phase::Body { status: 200 }, ErrorClass::Reset),
            (io::ErrorKind::HostUnreachable, Phase::Connect, ErrorClass::ConnectionRefused),
            (io::ErrorKind::InvalidData, Phase::Body { status: 200 }, ErrorClass::MalformedResponse),
        ] {
            assert_eq!(name(io::Error::from(kind), phase).unwrap().class, class, "{kind:?} {phase:?}");
        }
    }

    #[test]
    fn running_out_of_file_descriptors_is_our_own_trouble() {
        let fault = name(io::Error::from_raw_os_error(24), Phase::Connect).unwrap();
        assert_eq!(fault.class, ErrorClass::Internal);
        assert!(fault.reason.contains("--concurrency"));
    }
}
