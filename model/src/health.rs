//! How the endpoints of a Service are checked where nobody else says whether they are ready, and what checks found.
//!
//! A check is a connection by TCP, or a request by HTTP to a path, whose answer has to be 200 to 399. As text, for people:
//! `tcp` or `http:/PATH`, then what is other than usual, such as `http:/healthz,interval=10s,fall=2`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::service::ServiceName;

/// The longest path that may be asked for, in bytes.
pub const MAX_PATH: usize = 256;
/// The longest interval and timeout, in seconds.
pub const MAX_CHECK_SECONDS: u32 = 3600;

/// How each endpoint of a Service is checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct HealthCheck {
    /// What is asked for by HTTP; without it, an open connection is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The port that is checked, where it is not the endpoint's: of the Service's first port of TCP, or its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Seconds from one check to the next, 1 to 3600.
    pub interval_s: u32,
    /// Seconds that the answer may take, 1 to 3600, at most the interval.
    pub timeout_s: u32,
    /// How many checks in a row have to pass until one that failed is used again, 1 to 255.
    pub rise: u8,
    /// How many have to fail until one that passed is not used any more, 1 to 255.
    pub fall: u8,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: None,
            port: None,
            interval_s: 2,
            timeout_s: 1,
            rise: 2,
            fall: 3,
        }
    }
}

impl HealthCheck {
    /// Whether what types cannot say holds: the ranges of its fields.
    pub fn is_right(&self) -> bool {
        let seconds = 1..=MAX_CHECK_SECONDS;
        seconds.contains(&self.interval_s)
            && (1..=self.interval_s).contains(&self.timeout_s)
            && self.rise > 0
            && self.fall > 0
            && self.port != Some(0)
            && self.path.as_deref().is_none_or(is_path)
    }
}

/// Whether it can stand in the first line of a request as it is, and between commas.
fn is_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b',' && byte != b'#';
    path.starts_with('/') && path.len() <= MAX_PATH && path.bytes().all(plain)
}

/// The text says no check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a health check: write tcp or http:/PATH, and after it what is other than usual, such as \
     http:/healthz,interval=10s,timeout=2s,rise=2,fall=3,port=8081 (the timeout at most the interval, which is at most an hour)"
)]
pub struct BadHealthCheck(String);

impl FromStr for HealthCheck {
    type Err = BadHealthCheck;

    fn from_str(text: &str) -> Result<Self, BadHealthCheck> {
        let bad = || BadHealthCheck(text.to_owned());
        let mut words = text.split(',');
        let path = match words.next() {
            Some("tcp") => None,
            Some(http) => Some(http.strip_prefix("http:").ok_or_else(bad)?.to_owned()),
            None => return Err(bad()),
        };
        let mut check = Self {
            path,
            ..Self::default()
        };
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(bad)?;
            let number = || value.parse::<u16>().map_err(|_| bad());
            let count = || value.parse::<u8>().map_err(|_| bad());
            match key {
                "interval" => check.interval_s = seconds(value).ok_or_else(bad)?,
                "timeout" => check.timeout_s = seconds(value).ok_or_else(bad)?,
                "rise" => check.rise = count()?,
                "fall" => check.fall = count()?,
                "port" => check.port = Some(number()?),
                _ => return Err(bad()),
            }
        }
        if check.is_right() {
            Ok(check)
        } else {
            Err(bad())
        }
    }
}

fn seconds(text: &str) -> Option<u32> {
    match text.strip_suffix('m') {
        Some(minutes) => minutes.parse::<u32>().ok()?.checked_mul(60),
        None => text.strip_suffix('s').unwrap_or(text).parse().ok(),
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "http:{path}")?,
            None => f.write_str("tcp")?,
        }
        let Self {
            interval_s,
            timeout_s,
            rise,
            fall,
            ..
        } = self;
        write!(
            f,
            ",interval={interval_s}s,timeout={timeout_s}s,rise={rise},fall={fall}"
        )?;
        self.port.map_or(Ok(()), |port| write!(f, ",port={port}"))
    }
}

/// What a node's checks of the endpoints of one Service found; of those that were checked often enough to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedService {
    /// The Service.
    pub name: ServiceName,
    /// When it was made, so that one that has its name later is not meant.
    pub stamp: u64,
    /// Where checks pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed: Vec<SocketAddr>,
    /// Where they do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedCheck>,
}

/// An endpoint whose checks fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// What was checked.
    pub at: SocketAddr,
    /// Why, in words that stay the same while the cause does.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_read_as_they_are_shown() {
        let usual: HealthCheck = "tcp".parse().unwrap();
        assert_eq!(usual, HealthCheck::default());
        let all = "http:/a/b?c=d,interval=10s,timeout=2s,rise=1,fall=5,port=8081";
        let check: HealthCheck = all.parse().unwrap();
        assert_eq!(check.path.as_deref(), Some("/a/b?c=d"));
        assert_eq!(
            (check.interval_s, check.timeout_s, check.rise, check.fall),
            (10, 2, 1, 5)
        );
        assert_eq!(
            (check.port, check.to_string()),
            (Some(8081), all.to_owned())
        );
        let minutes: HealthCheck = "tcp,interval=2m".parse().unwrap();
        assert_eq!(minutes.interval_s, 120);
    }

    #[test]
    fn what_would_break_a_request_or_never_end_is_refused() {
        let long = format!("http:/{}", "a".repeat(MAX_PATH));
        let wrong = [
            "",
            "udp",
            "http",
            "http:healthz",
            "http:/a b",
            "http:/a\r\nHost: b",
            "tcp,interval=0",
            "tcp,interval=2h",
            "tcp,interval=4000",
            "tcp,timeout=5s",
            "tcp,rise=0",
            "tcp,fall=256",
            "tcp,port=0",
            "tcp,often",
            "tcp,when=now",
            &long,
        ];
        for text in wrong {
            assert!(text.parse::<HealthCheck>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_said_in_json_is_as_usual() {
        let check: HealthCheck = serde_json::from_str(r#"{"path":"/healthz"}"#).unwrap();
        assert_eq!(check, "http:/healthz".parse().unwrap());
    }
}
