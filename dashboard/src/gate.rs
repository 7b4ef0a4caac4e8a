//! Which requests are let in, before anybody asks who sends them.
//!
//! A page on loopback can be reached by any other page in the same browser, so two lies are refused: a name that leads
//! here by somebody else's DNS (the `Host` header), and a request that another site's page sends (`Origin`,
//! `Sec-Fetch-Site`). Names are few: `localhost` and addresses in figures, which DNS cannot bend. On loopback only
//! loopback's own addresses are taken. RFC 9110 section 7.2, RFC 6454, Fetch Metadata (W3C).

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, header};

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// By the node's socket, or a listener on loopback: whoever connects is on this host.
    Local,
    /// By a listener on this address; unspecified for all of the host's.
    Address(IpAddr),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The `Host` is absent or a name that is not ours.
    Host,
    /// Another site's page sends it.
    Origin,
}

impl Refused {
    /// The cause, for people.
    pub(crate) const fn cause(self) -> &'static str {
        match self {
            Self::Host => "this page is not served under that name: use an address, or localhost",
            Self::Origin => "the page of another site may not ask here",
        }
    }
}

/// Looks at a request's method and headers.
pub(crate) fn check(method: &Method, headers: &HeaderMap, door: Door) -> Result<(), Refused> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).ok_or(Refused::Host)?;
    if headers.get_all(header::HOST).iter().count() != 1 || !is_ours(host, door) {
        return Err(Refused::Host);
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.strip_prefix("http://") == Some(host) => Ok(()),
        Some(origin) if origin.strip_prefix("https://") == Some(host) => Ok(()),
        Some(_) => Err(Refused::Origin),
        // A browser names the origin of everything that may change something.
        None if !is_safe(method) => Err(Refused::Origin),
        None => match text(header::HeaderName::from_static("sec-fetch-site")) {
            None | Some("same-origin" | "none") => Ok(()),
            // A link on another page may lead here; what it cannot do is read.
            Some(_)
                if text(header::HeaderName::from_static("sec-fetch-mode")) == Some("navigate") =>
            {
                Ok(())
            }
            Some(_) => Err(Refused::Origin),
        },
    }
}

/// Whether a server on loopback that asks for no login, such as that of metrics, may answer: the request came by a name of
/// loopback's, and no page of another site sent it.
pub fn is_from_here(method: &Method, headers: &HeaderMap) -> bool {
    check(method, headers, Door::Local).is_ok()
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn is_ours(host: &str, door: Door) -> bool {
    let Some(name) = without_port(host) else {
        return false;
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let Ok(ip) = bare.unwrap_or(name).parse::<IpAddr>() else {
        return false;
    };
    match door {
        Door::Local => ip.is_loopback(),
        Door::Address(at) => ip.is_loopback() || at.is_unspecified() || at == ip,
    }
}

/// The host without its port; `None` if the port is none.
fn without_port(host: &str) -> Option<&str> {
    let end = if host.starts_with('[') {
        host.find(']')? + 1
    } else {
        host.find(':').unwrap_or(host.len())
    };
    let (name, port) = host.split_at(end);
    let port = port.strip_prefix(':').unwrap_or(port);
    let fits = port.is_empty() || port.parse::<u16>().is_ok();
    fits.then_some(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn checked(method: Method, door: Door, headers: &[(&str, &str)]) -> Result<(), Refused> {
        let headers = headers.iter().map(|(name, value)| {
            let name: header::HeaderName = name.parse().unwrap();
            (name, value.parse().unwrap())
        });
        check(&method, &headers.collect(), door)
    }

    #[test]
    fn only_our_own_names_are_taken() {
        let at = Door::Address("192.0.2.7".parse().unwrap());
        let any = Door::Address("0.0.0.0".parse().unwrap());
        let table: &[(&str, Door, bool)] = &[
            ("127.0.0.1:4040", Door::Local, true),
            ("127.0.0.1", Door::Local, true),
            ("localhost:8080", Door::Local, true),
            ("LocalHost", Door::Local, true),
            ("[::1]:4040", Door::Local, true),
            ("192.0.2.7:4040", Door::Local, false),
            ("192.0.2.7:4040", at, true),
            ("192.0.2.8:4040", at, false),
            ("192.0.2.8:4040", any, true),
            ("evil.example", Door::Local, false),
            ("evil.example", any, false),
            ("127.0.0.1.evil.example", Door::Local, false),
            ("localhost.evil.example", Door::Local, false),
            ("127.0.0.1:evil", Door::Local, false),
            ("127.0.0.1:4040:1", Door::Local, false),
            ("user@127.0.0.1", Door::Local, false),
            ("[::1", Door::Local, false),
            ("", Door::Local, false),
        ];
        for (host, door, taken) in table {
            let expected = if *taken { Ok(()) } else { Err(Refused::Host) };
            assert_eq!(
                checked(Method::GET, *door, &[("host", host)]),
                expected,
                "{host} at {door:?}"
            );
        }
        assert_eq!(checked(Method::GET, Door::Local, &[]), Err(Refused::Host));
        let two = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert!(checked(Method::GET, Door::Local, &two[..1]).is_ok());
    }

    #[test]
    fn other_sites_may_not_ask() {
        // Method, more headers as `name value`, and whether that is taken.
        let table = [
            ("POST", "origin http://127.0.0.1:4040", true),
            ("POST", "", false),
            ("POST", "origin null", false),
            ("POST", "origin http://evil.example", false),
            ("POST", "origin http://127.0.0.1:4041", false),
            ("POST", "origin http://127.0.0.1:4040.evil.example", false),
            ("DELETE", "", false),
            ("GET", "", true),
            ("GET", "origin http://evil.example", false),
            ("GET", "sec-fetch-site same-origin", true),
            (
                "GET",
                "sec-fetch-site cross-site, sec-fetch-mode no-cors",
                false,
            ),
            (
                "GET",
                "sec-fetch-site cross-site, sec-fetch-mode navigate",
                true,
            ),
        ];
        for (method, more, taken) in table {
            let more = more.split(", ").filter_map(|one| one.split_once(' '));
            let headers: Vec<(&str, &str)> = more.chain([("host", "127.0.0.1:4040")]).collect();
            let expected = if taken { Ok(()) } else { Err(Refused::Origin) };
            let method = method.parse().unwrap();
            assert_eq!(
                checked(method, Door::Local, &headers),
                expected,
                "{headers:?}"
            );
        }
    }
}
