//! `weavectl ping PEER`: pings inside the session with a member, a line for each, and what they come to.

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use weave_model::api::{PingRequest, Pong};

use super::client::Client;
use super::complete;
use super::failure::{Exit, Failure};
use super::print;
use super::print::{Reader, milliseconds};
use crate::duration;

/// `weavectl ping ...`.
#[derive(Debug, clap::Args)]
pub struct Ping {
    /// The member: its name, or the first digits of its id
    #[arg(add = complete::peers())]
    peer: String,
    /// How many pings
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// From one ping to the next
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
    interval: Duration,
    /// How long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
    wait: Duration,
}

/// All pings of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Statistics {
    peer: String,
    sent: u32,
    received: u32,
    /// Microseconds, in the order of the answers.
    rtts_us: Vec<u32>,
}

impl Ping {
    /// Pings; a person sees each answer when it comes.
    pub(super) fn run(&self, client: &Client<'_>, is_human: bool) -> Result<Statistics, Failure> {
        let request = PingRequest {
            patience_ms: self.wait.as_millis().min(60_000) as u32,
        };
        let path = format!("/peers/{}/ping", self.peer);
        let mut told = Statistics {
            peer: self.peer.clone(),
            ..Statistics::default()
        };
        for number in 1..=self.count {
            if number > 1 {
                thread::sleep(self.interval);
            }
            told.sent += 1;
            let line = match client.post::<Pong>(&path, &request) {
                Ok(pong) => {
                    told.received += 1;
                    told.rtts_us.push(pong.rtt_us);
                    answer(&pong, number)
                }
                Err(failure) if is_loss(&failure) => format!("ping {number}: {}\n", failure.cause),
                Err(failure) => return Err(failure),
            };
            if is_human && print::to_stdout(&line)? == Reader::Gone {
                break;
            }
        }
        Ok(told)
    }
}

/// Whether a ping was lost, rather than never sent.
fn is_loss(failure: &Failure) -> bool {
    failure.cause.starts_with("no answer within")
}

fn answer(pong: &Pong, number: u32) -> String {
    let rtt = milliseconds(pong.rtt_us);
    let at = pong
        .endpoint
        .map_or_else(String::new, |at| format!(" ({at})"));
    format!("ping {number}: {}{at} answered in {rtt}\n", pong.name)
}

impl Statistics {
    /// 1 when nothing came back.
    pub(super) const fn exit(&self) -> Exit {
        if self.received == 0 {
            Exit::Failed
        } else {
            Exit::Ok
        }
    }

    /// How many came back, and how long it took.
    pub(super) fn human(&self) -> String {
        let lost = (self.sent - self.received) * 100 / self.sent.max(1);
        let mut text = format!(
            "\n{}: {} sent, {} received, {lost}% lost\n",
            self.peer, self.sent, self.received
        );
        let [Some(least), Some(most)] = [self.rtts_us.iter().min(), self.rtts_us.iter().max()]
        else {
            return text;
        };
        let count = self.rtts_us.len() as u64;
        let mean = self.rtts_us.iter().map(|&us| u64::from(us)).sum::<u64>() / count;
        let spread = self
            .rtts_us
            .iter()
            .map(|&us| u64::from(us).abs_diff(mean).pow(2));
        let deviation = (spread.sum::<u64>() / count).isqrt();
        let [mean, deviation] = [mean, deviation].map(|us| us as u32);
        let all = [*least, mean, *most, deviation]
            .map(milliseconds)
            .join(" / ");
        let _ = writeln!(text, "rtt min / avg / max / deviation: {all}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_says_what_was_lost_and_how_long_it_took() {
        let told = Statistics {
            peer: "host2".to_owned(),
            sent: 4,
            received: 3,
            rtts_us: vec![300, 500, 400],
        };
        let expected = "\nhost2: 4 sent, 3 received, 25% lost\n\
            rtt min / avg / max / deviation: 0.30 ms / 0.40 ms / 0.50 ms / 0.08 ms\n";
        assert_eq!(told.human(), expected);
        assert_eq!(told.exit(), Exit::Ok);
        let none = Statistics {
            sent: 2,
            ..Statistics::default()
        };
        assert!(none.human().ends_with("2 sent, 0 received, 100% lost\n"));
        assert_eq!(none.exit(), Exit::Failed);
    }
}
