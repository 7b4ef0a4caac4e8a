//! Calling the IPAM plugin that a configuration names (specification, section "Plugin Delegation"): the same stdin, the
//! same environment, its answer or its error.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::environment::Environment;
use crate::error::{Error, code};
use crate::result;

/// What an IPAM plugin chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// What it says about DNS.
    pub dns: Option<Value>,
}

/// Calls the plugin with a verb and returns what it wrote.
pub fn call(
    environment: &Environment,
    ipam: &str,
    verb: &str,
    stdin: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut places = environment.path.iter().map(|folder| folder.join(ipam));
    let program = places.find(|path| path.is_file()).ok_or_else(|| {
        let why = format!("there is no plugin \"{ipam}\" in CNI_PATH");
        Error::config("ipam.type", why)
    })?;
    let failed = |error: std::io::Error| {
        Error::io(&format!("the IPAM plugin {}", program.display()), &error)
    };
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut pipe) = child.stdin.take() {
        // One that does not read says in its answer why.
        let _ = pipe.write_all(stdin);
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(said(ipam, &output.stdout).unwrap_or_else(|| {
        Error::new(
            code::NODE,
            format!("the IPAM plugin {ipam} failed: {}", output.status),
        )
    }))
}

/// The error that a plugin wrote, under its own code.
fn said(ipam: &str, stdout: &[u8]) -> Option<Error> {
    let error: Value = serde_json::from_slice(stdout).ok()?;
    let code = error
        .get("code")?
        .as_u64()
        .and_then(|code| u32::try_from(code).ok())?;
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    Some(Error::new(code, format!("the IPAM plugin {ipam}: {}", text("msg"))).with(text("details")))
}

/// Reads the result of ADD. Its gateway is not asked: this network has its own. Routes of its own would be ones that
/// nobody makes, so they are refused.
pub fn choice(ipam: &str, stdout: &[u8]) -> Result<Choice, Error> {
    let result: Value = serde_json::from_slice(stdout).map_err(|error| {
        Error::new(
            code::DECODE,
            format!("the result of the IPAM plugin {ipam} is not JSON: {error}"),
        )
    })?;
    let routes = result.get("routes").and_then(Value::as_array);
    let own = |route: &&Value| !matches!(route["dst"].as_str(), Some("0.0.0.0/0" | "::/0"));
    if let Some(route) = routes.into_iter().flatten().find(own) {
        return Err(Error::new(
            code::UNSUPPORTED,
            format!("ipam.routes is not supported: {route}"),
        ));
    }
    let ips = result::addresses(&result);
    if ips.is_empty() {
        return Err(Error::config("ipam", format!("{ipam} chose no address")));
    }
    let dns = result
        .get("dns")
        .filter(|dns| dns.as_object().is_some_and(|dns| !dns.is_empty()));
    Ok(Choice {
        ips,
        dns: dns.cloned(),
    })
}
