//! What must be true before `weaved` starts, checked one by one so that the first thing amiss is named with its fix.
//!
//! Only what a person can mend is checked here, and before anything was changed. The state directory and its lock are
//! the router's to check, the socket the API's.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use crate::obstacle::Obstacle;

/// The capabilities that are needed, by their bit in `<linux/capability.h>`, and for what.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "make devices, routes and rules"),
    (13, "CAP_NET_RAW", "take broadcasts from containers"),
    (
        21,
        "CAP_SYS_ADMIN",
        "enter the containers' network namespaces",
    ),
];

/// Checks privileges and the TUN device.
pub fn check_host() -> Result<(), Obstacle> {
    check_privileges()?;
    check_tun()
}

/// Checks that this process has the capabilities that a node needs.
pub fn check_privileges() -> Result<(), Obstacle> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| Obstacle::new(format!("cannot read /proc: {error}"), "mount /proc"))?;
    read_privileges(&status)
}

/// Reads the effective capabilities out of `/proc/self/status`; see proc_pid_status(5).
fn read_privileges(status: &str) -> Result<(), Obstacle> {
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    for (bit, name, purpose) in CAPABILITIES {
        if effective >> bit & 1 == 0 {
            let cause = format!("missing privilege: {name}, to {purpose}");
            return Err(Obstacle::new(
                cause,
                "run weaved as root, or give it that capability",
            ));
        }
    }
    Ok(())
}

/// Checks that the TUN device can be opened.
pub fn check_tun() -> Result<(), Obstacle> {
    let path = "/dev/net/tun";
    let Err(error) = OpenOptions::new().read(true).write(true).open(path) else {
        return Ok(());
    };
    let fix = match error.kind() {
        ErrorKind::PermissionDenied => "allow this process to use it (devices cgroup, file mode)",
        _ => "load the kernel module: modprobe tun; in a container, pass the device in",
    };
    Err(Obstacle::new(
        format!("missing kernel feature: cannot open {path}: {error}"),
        fix,
    ))
}

/// Checks that the state directory is one, if it exists.
pub fn check_state_dir(path: &Path) -> Result<(), Obstacle> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            let cause = format!("{} is not a directory", path.display());
            Err(Obstacle::new(cause, "give a directory with --state-dir"))
        }
        _ => Ok(()),
    }
}

/// Checks that the UDP port is free.
pub fn check_port(listen: SocketAddr) -> Result<(), Obstacle> {
    let Err(error) = UdpSocket::bind(listen) else {
        return Ok(());
    };
    let cause = format!("cannot listen on UDP {listen}: {error}");
    Err(match error.kind() {
        ErrorKind::AddrInUse => Obstacle::new(
            format!(
                "UDP port {} is in use: cannot listen on {listen}",
                listen.port()
            ),
            format!(
                "see who has it with: ss -lunp sport = :{}; or choose another with --listen",
                listen.port()
            ),
        ),
        ErrorKind::AddrNotAvailable => {
            Obstacle::new(cause, "give --listen an address that this host has")
        }
        _ => Obstacle::new(cause, "give another address with --listen"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(
            read_privileges("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            Ok(())
        );
        let some = read_privileges("CapEff:\t0000000000001000\n").unwrap_err();
        assert!(some.cause.contains("CAP_NET_RAW"), "{some}");
        assert!(
            read_privileges("CapEff:\t0\n")
                .unwrap_err()
                .cause
                .contains("CAP_NET_ADMIN")
        );
        assert!(read_privileges("").is_err());
    }

    #[test]
    fn a_port_in_use_is_named() {
        let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = holder.local_addr().unwrap();
        let obstacle = check_port(listen).unwrap_err();
        assert!(
            obstacle
                .cause
                .starts_with(&format!("UDP port {} is in use", listen.port()))
        );
        drop(holder);
        assert_eq!(check_port(listen), Ok(()));
        let elsewhere = check_port("192.0.2.77:6783".parse().unwrap()).unwrap_err();
        assert!(
            elsewhere.fix.contains("an address that this host has"),
            "{elsewhere:?}"
        );
    }
}
