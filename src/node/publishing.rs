//! Published ports: which there are, who may have one, and that the host's rules lead where the book says.
//!
//! What is published stands with the attachment in the book, and the table of rules follows from the book alone
//! (`weave_router::publish`). So a restart, a flush and a container that goes need nothing of their own. A port is
//! given away once, as sockets would have it: not over another container's, nor over a program's of the host, which
//! would get no connections any more and not know why.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use weave_linux::conntrack::flows::{Conntrack, Flow, To};
use weave_linux::nft::Found;
use weave_model::api::{AttachRequest, Attachment, Code, Refusal};
use weave_model::{ClusterRange, NetworkSpec, Protocol, PublishedPort};
use weave_router::publish::Target;

use super::book::Book;
use super::host::RULES_FIX;
use super::works::Works;
use crate::obstacle::Obstacle;

/// Where the ports of all attachments lead.
pub(super) fn targets(book: &Book) -> Vec<Target> {
    let of = |attachment: &Attachment| {
        let Attachment {
            ip,
            ip6,
            default_route,
            ..
        } = *attachment;
        let lead = move |published: &PublishedPort| Target {
            published: *published,
            v4: ip.addr(),
            v6: ip6.map(|ip6| ip6.addr()),
            by_default: default_route,
        };
        attachment.publish.iter().map(lead).collect::<Vec<_>>()
    };
    book.entries()
        .flat_map(|entry| of(&entry.attachment))
        .collect()
}

/// Refuses ports that cannot be had.
pub(super) fn check(
    book: &Book,
    request: &AttachRequest,
    network: &NetworkSpec,
) -> Result<(), Refusal> {
    let choose = "choose another port of the host";
    if network.internal && !request.publish.is_empty() {
        let name = &request.network;
        let cause =
            format!("the network {name} is internal: nothing outside reaches its containers");
        return Err(Refusal::new(
            Code::Invalid,
            cause,
            "publish no ports, or attach to another network",
        ));
    }
    for (at, port) in request.publish.iter().enumerate() {
        if let Some(twice) = request.publish[..at].iter().find(|one| one.collides(port)) {
            let cause = format!("the ports {twice} and {port} collide");
            return Err(Refusal::new(Code::Invalid, cause, choose));
        }
        let taken = |attachment: &&Attachment| {
            let mut published = attachment.publish.iter();
            published.any(|one| one.collides(port))
        };
        let mut attached = book.entries().map(|entry| &entry.attachment);
        let cause = match attached.find(taken) {
            Some(other) => format!("another container publishes it: {}", other.name),
            None if is_in_use(port) => "a program of the host has it".to_owned(),
            None => continue,
        };
        let cause = format!("the port {port} cannot be published: {cause}");
        return Err(Refusal::new(Code::Conflict, cause, choose));
    }
    Ok(())
}

/// Whether a program of the host has a socket at the port: then none can be bound there. SCTP is not asked about, which
/// most kernels have no sockets for.
fn is_in_use(port: &PublishedPort) -> bool {
    let every = [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    ];
    let meant = |address: &IpAddr| match port.address {
        Some(one) => one == *address,
        None => true,
    };
    let one = port.one_address();
    let mut addresses = one.into_iter().chain(every.into_iter().filter(meant));
    addresses.any(|address| {
        let place = SocketAddr::new(address, port.host_port.get());
        let bound = match port.protocol {
            Protocol::Tcp => TcpListener::bind(place).map(drop),
            Protocol::Udp => UdpSocket::bind(place).map(drop),
            Protocol::Sctp => Ok(()),
        };
        bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    })
}

impl Works {
    /// Opens the ports of an attachment that stands in the book.
    pub(super) fn open_ports(&self, attachment: &Attachment) -> Result<(), Refusal> {
        if attachment.publish.is_empty() {
            return Ok(());
        }
        let range = self.range()?;
        let targets = targets(&self.book);
        self.side
            .ensure_published(range, targets)
            .map_err(|error| {
                let cause = format!("the rules of published ports cannot be made: {error}");
                Refusal::new(Code::Failed, cause, RULES_FIX)
            })?;
        forget_flows(attachment, |port, flow| {
            is_at(port, flow.destination) && !has_address(attachment, flow.answers.ip())
        });
        Ok(())
    }

    /// Closes the ports of an attachment that has gone from the book. What fails is seen to at the next look.
    pub(super) fn close_ports(&self, attachment: &Attachment) {
        let Some(range) = self.router.view().range else {
            return;
        };
        if attachment.publish.is_empty() {
            return;
        }
        if let Err(error) = self.side.ensure_published(range, targets(&self.book)) {
            tracing::warn!(%error, name = %attachment.name, "its published ports stay open for now");
        }
        forget_flows(attachment, |port, flow| {
            flow.destination.port() == port.host_port.get()
                && has_address(attachment, flow.answers.ip())
        });
    }

    /// Puts the table of published ports right.
    pub(super) fn mend_ports(&self, range: ClusterRange) -> Option<Obstacle> {
        let ensured = self.side.ensure_published(range, targets(&self.book));
        let error = ensured.err()?;
        let cause = format!("published ports may lead nowhere: {error}");
        Some(Obstacle::new(cause, RULES_FIX))
    }

    /// What is wrong with the rules of an attachment's ports, if it has any.
    pub(super) fn find_port_faults(
        &self,
        range: ClusterRange,
        attachment: &Attachment,
    ) -> Option<String> {
        if attachment.publish.is_empty() {
            return None;
        }
        match self.side.find_published(range, targets(&self.book)) {
            Ok(Found::Right) => None,
            Ok(Found::Missing) => Some("the rules of published ports are gone".to_owned()),
            Ok(Found::Wrong) => Some("the rules of published ports were changed".to_owned()),
            Err(error) => Some(format!(
                "the rules of published ports cannot be read: {error}"
            )),
        }
    }
}

/// Makes the kernel forget UDP flows to ports of an attachment. UDP has no end of connection: a client that goes on
/// sending would be kept where it was.
fn forget_flows(attachment: &Attachment, stale: impl Fn(&PublishedPort, &Flow) -> bool) {
    let udp = |port: &&PublishedPort| port.protocol == Protocol::Udp;
    let ports: Vec<_> = attachment.publish.iter().filter(udp).collect();
    if ports.is_empty() {
        return;
    }
    let forget = || {
        let conntrack = Conntrack::open()?;
        for port in &ports {
            let families = [true, false].into_iter().filter(|ipv4| port.is_of(*ipv4));
            for to in families.map(|ipv4| To::Port(ipv4, port.host_port.get())) {
                let found =
                    conntrack.flows(Protocol::Udp.number(), to, |flow| stale(port, flow))?;
                for flow in &found.flows {
                    conntrack.forget(flow)?;
                }
            }
        }
        std::io::Result::Ok(())
    };
    if let Err(error) = forget() {
        tracing::warn!(%error, name = %attachment.name, "flows to its ports may go where they went before");
    }
}

/// Whether a datagram to this place is for the port. An address is the host's own if a socket can have it.
fn is_at(port: &PublishedPort, place: SocketAddr) -> bool {
    let own = || UdpSocket::bind((place.ip(), 0)).is_ok();
    place.port() == port.host_port.get()
        && match port.one_address() {
            Some(address) => address == place.ip(),
            None => port.is_of(place.is_ipv4()) && own(),
        }
}

fn has_address(attachment: &Attachment, address: IpAddr) -> bool {
    let Attachment { ip, ip6, .. } = attachment;
    address == IpAddr::from(ip.addr()) || ip6.is_some_and(|ip6| address == IpAddr::from(ip6.addr()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::book::tests::entry;

    fn request(ports: &[&str]) -> AttachRequest {
        let request = serde_json::json!({"netns": "/run/netns/b", "name": "b"});
        AttachRequest {
            publish: ports.iter().map(|port| port.parse().unwrap()).collect(),
            ..serde_json::from_value(request).unwrap()
        }
    }

    #[test]
    fn a_port_is_given_away_once() {
        let mut book = Book::default();
        let mut web = entry("web", "eth0", 1);
        web.attachment.publish = vec!["40080:80".parse().unwrap()];
        book.insert(web);
        let open = NetworkSpec::default();
        let refused = |ports: &[&str]| check(&book, &request(ports), &open).map_err(|r| r.code);
        assert_eq!(refused(&["40080:81"]), Err(Code::Conflict));
        assert_eq!(refused(&["127.0.0.1:40080:81"]), Err(Code::Conflict));
        assert_eq!(refused(&["40081:80", "40081:81"]), Err(Code::Invalid));
        assert_eq!(refused(&["40080:80/sctp", "40082:80/sctp"]), Ok(()));
        let internal = NetworkSpec {
            internal: true,
            ..open
        };
        let refused = check(&book, &request(&["40083:80/sctp"]), &internal);
        assert_eq!(refused.unwrap_err().code, Code::Invalid);
        assert_eq!(check(&book, &request(&[]), &internal), Ok(()));
    }

    #[test]
    fn a_port_of_a_program_is_not_taken() {
        let program = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = program.local_addr().unwrap().port();
        let used = |text: String| is_in_use(&text.parse().unwrap());
        assert!(used(format!("{port}:80")));
        assert!(used(format!("127.0.0.1:{port}:80")));
        assert!(!used(format!("127.0.0.2:{port}:80")));
        assert!(!used(format!("{port}:80/sctp")));
    }

    #[test]
    fn ports_lead_to_the_addresses_in_the_book() {
        let mut book = Book::default();
        let mut web = entry("web", "eth0", 1);
        web.attachment.publish = vec!["80:80".parse().unwrap(), "81:81/udp".parse().unwrap()];
        web.attachment.default_route = false;
        book.insert(web);
        book.insert(entry("db", "eth0", 2));
        let found = targets(&book);
        assert_eq!(found.len(), 2);
        let Target { v4, by_default, .. } = found[0];
        assert_eq!((v4.to_string().as_str(), by_default), ("10.32.0.2", false));
    }
}
