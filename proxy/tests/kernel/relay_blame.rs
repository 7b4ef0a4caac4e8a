//! Whom the relay blames and praises: endpoints that hang, or fail now and then.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use weave_linux::intercept::reset_on_drop;
use weave_model::{Balance, Service};
use weave_proxy::sources::Change;

use crate::lab::{B, C, ok, web};
use crate::relay::noted;
use crate::relay_ends::{lab, open, report, serve};

/// How long a client waits for an answer.
const SHORT: Option<Duration> = Some(Duration::from_millis(100));

/// It takes connections faster than others answer, and its clients give up.
#[test]
fn with_latency_an_endpoint_that_hangs_gets_few_connections() {
    let mut lab = lab();
    serve(&lab.c, |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    serve(&lab.b, |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(b"b").unwrap();
    });
    report(&mut lab, &[B, C]);
    lab.report([Change::Service(Service {
        balance: Some(Balance::Latency),
        ..web()
    })]);
    let mut hung = 0;
    for _ in 0..60 {
        let mut stream = open(&lab.a);
        stream.set_read_timeout(SHORT).unwrap();
        stream.write_all(b"?").unwrap();
        hung += usize::from(stream.read_exact(&mut [0]).is_err());
    }
    assert!((1..=6).contains(&hung), "{hung} of 60");
}

/// That a client gave up on an endpoint makes nothing good of what that failed before.
#[test]
fn an_endpoint_whose_clients_give_up_is_not_praised() {
    let mut lab = lab();
    let turn = AtomicUsize::new(0);
    serve(&lab.c, move |mut stream| {
        if turn.fetch_add(1, Relaxed) % 3 == 2 {
            let _ = stream.read_to_end(&mut Vec::new());
        } else {
            reset_on_drop(&stream).unwrap();
        }
    });
    serve(&lab.b, |mut stream| stream.write_all(b"b").unwrap());
    report(&mut lab, &[B, C]);
    for from in [&lab.a, &lab.host, &lab.outside]
        .into_iter()
        .cycle()
        .take(60)
    {
        let mut stream = open(from);
        stream.set_read_timeout(SHORT).unwrap();
        let answered = stream
            .write_all(b"?")
            .and_then(|()| stream.read_exact(&mut [0]));
        if answered.is_err() && stream.shutdown(Shutdown::Write).is_ok() {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    let [picks, failures, _, ejections] = noted(&lab, C);
    assert!(ejections > 0, "{failures} failures of {picks}");
}

/// What breaks may be what was said: the one who says it must not take an endpoint away from the others.
#[test]
fn what_one_client_alone_breaks_leaves_nobody_out_who_serves_others() {
    let mut lab = lab();
    for server in [&lab.b, &lab.c] {
        serve(server, |mut stream| {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            if byte == *b"x" {
                reset_on_drop(&stream).unwrap();
            } else {
                stream.write_all(b"ok").unwrap();
            }
        });
    }
    report(&mut lab, &[B, C]);
    let breaks = |from| {
        let mut stream = open(from);
        let said = stream.write_all(b"x");
        said.and_then(|()| stream.read_exact(&mut [0])).unwrap_err();
    };
    while [B, C].into_iter().any(|one| noted(&lab, one)[0] == 0) {
        let mut stream = open(&lab.outside);
        stream.write_all(b"?").unwrap();
        assert_eq!(stream.read(&mut [0; 2]).unwrap(), 2);
    }
    let ejections = || noted(&lab, B)[3] + noted(&lab, C)[3];
    (0..30).for_each(|_| breaks(&lab.a));
    assert_eq!(ejections(), 0);
    (0..30).for_each(|_| breaks(&lab.outside));
    assert!(ejections() > 0, "two clients");
}

/// Where this host has no port left, the same endpoint once more has none either.
#[test]
fn without_a_free_port_one_endpoint_is_tried_once() {
    let mut lab = lab();
    serve(&lab.b, |mut stream| {
        stream.write_all(b"b").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    report(&mut lab, &[B]);
    ok(
        &lab.host,
        "sysctl -qw net.ipv4.ip_local_port_range='40000 40001'",
    );
    let mut held = Vec::new();
    for number in 1..=4 {
        let mut stream = open(&lab.outside);
        if stream.read_exact(&mut [0]).is_err() {
            let [picks, failures, ..] = noted(&lab, B);
            assert_eq!((picks, failures), (number, 0), "one try each");
            return;
        }
        held.push(stream);
    }
    panic!("there were ports for {}", held.len());
}
