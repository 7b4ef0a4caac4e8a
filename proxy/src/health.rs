//! Checking endpoints where nobody else says whether they are ready: when each is due, and what came of it.
//!
//! Pure: whoever connects takes what is due from [`Checks::poll_check`], says by [`Checks::handle_result`] what came of
//! it, and reads the outcome. An endpoint has an outcome after its first check. From then on it changes only when as
//! many checks in a row say the other thing as was asked for, so a lost packet moves no traffic and an endpoint that is
//! half dead does not come and go with each check.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_model::{CheckedService, FailedCheck, HealthCheck, ServiceName};

/// What is checked: where, and for which Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// The Service.
    pub service: ServiceName,
    /// When it was made.
    pub stamp: u64,
    /// Where.
    pub at: SocketAddr,
}

/// All that this node checks, and how.
pub type Wanted = BTreeMap<Subject, HealthCheck>;

/// The state of all checks.
#[derive(Debug, Default)]
pub struct Checks(BTreeMap<Subject, Check>);

#[derive(Debug)]
struct Check {
    how: HealthCheck,
    /// When the next one begins; absent while one is under way.
    due: Option<Instant>,
    /// When the one under way began.
    began: Instant,
    outcome: Option<Result<(), String>>,
    /// How many in a row said otherwise.
    against: u8,
}

impl Checks {
    /// From now on these are checked. What was checked the same way before keeps its outcome.
    pub fn handle_wanted(&mut self, wanted: &Wanted, now: Instant) {
        self.0
            .retain(|subject, check| wanted.get(subject) == Some(&check.how));
        for (subject, how) in wanted {
            let new = || Check {
                how: how.clone(),
                due: Some(now),
                began: now,
                outcome: None,
                against: 0,
            };
            self.0.entry(subject.clone()).or_insert_with(new);
        }
    }

    /// One that is to be made now; it is under way from here on.
    pub fn poll_check(&mut self, now: Instant) -> Option<(Subject, HealthCheck)> {
        let is_due = |check: &&mut Check| check.due.is_some_and(|due| due <= now);
        let all = self.0.iter_mut();
        let due = all.filter(|(_, check)| is_due(check));
        let (subject, check) = due.min_by_key(|(_, check)| check.due)?;
        (check.due, check.began) = (None, now);
        Some((subject.clone(), check.how.clone()))
    }

    /// When the next one is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().filter_map(|check| check.due).min()
    }

    /// What came of one that was under way. Whether an outcome changed.
    pub fn handle_result(
        &mut self,
        subject: &Subject,
        result: Result<(), String>,
        now: Instant,
    ) -> bool {
        // It may be gone, or asked for in another way, since it began.
        let Some(check) = self.0.get_mut(subject).filter(|check| check.due.is_none()) else {
            return false;
        };
        let interval = Duration::from_secs(check.how.interval_s.into());
        check.due = Some((check.began + interval).max(now));
        check.take(result)
    }

    /// What is known, by Service.
    pub fn outcomes(&self) -> Vec<CheckedService> {
        let mut all: Vec<CheckedService> = Vec::new();
        for (subject, check) in &self.0 {
            let Some(outcome) = &check.outcome else {
                continue;
            };
            let (name, stamp) = (&subject.service, subject.stamp);
            if all
                .last()
                .is_none_or(|last| (&last.name, last.stamp) != (name, stamp))
            {
                all.push(CheckedService {
                    name: name.clone(),
                    stamp,
                    passed: Vec::new(),
                    failed: Vec::new(),
                });
            }
            let Some(last) = all.last_mut() else { continue };
            match outcome {
                Ok(()) => last.passed.push(subject.at),
                Err(why) => last.failed.push(FailedCheck {
                    at: subject.at,
                    why: why.clone(),
                }),
            }
        }
        all
    }

    /// Whether every one has an outcome.
    pub fn is_settled(&self) -> bool {
        self.0.values().all(|check| check.outcome.is_some())
    }
}

impl Check {
    fn take(&mut self, result: Result<(), String>) -> bool {
        let (same, needed) = match (&self.outcome, &result) {
            (None, _) => (false, 1),
            (Some(Ok(())), Ok(())) | (Some(Err(_)), Err(_)) => (true, 0),
            (Some(Err(_)), Ok(())) => (false, self.how.rise),
            (Some(Ok(())), Err(_)) => (false, self.how.fall),
        };
        self.against = if same {
            0
        } else {
            self.against.saturating_add(1)
        };
        // One that goes on failing may do so for another reason now.
        let changes = if same {
            self.outcome.as_ref() != Some(&result)
        } else {
            self.against >= needed
        };
        if changes {
            (self.outcome, self.against) = (Some(result), 0);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn subject(last: u8) -> Subject {
        Subject {
            service: "web".parse().unwrap(),
            stamp: 7,
            at: SocketAddr::from(([10, 32, 0, last], 80)),
        }
    }

    fn wanted(lasts: &[u8]) -> Wanted {
        let how = HealthCheck::default();
        lasts
            .iter()
            .map(|last| (subject(*last), how.clone()))
            .collect()
    }

    fn refused() -> Result<(), String> {
        Err("refused".to_owned())
    }

    /// Lets the one endpoint have these results, one an interval; what is known after each.
    fn story(results: &[Result<(), String>]) -> Vec<bool> {
        let (mut checks, mut now) = (Checks::default(), Instant::now());
        checks.handle_wanted(&wanted(&[1]), now);
        let mut passes = Vec::new();
        for result in results {
            let (due, _) = checks.poll_check(now).expect("one is due");
            assert!(checks.poll_check(now).is_none(), "one at a time");
            checks.handle_result(&due, result.clone(), now + SECOND / 10);
            passes.push(!checks.outcomes()[0].passed.is_empty());
            assert!(
                checks.poll_check(now + SECOND).is_none(),
                "not before its time"
            );
            now += 2 * SECOND;
        }
        passes
    }

    #[test]
    fn the_first_result_counts_and_then_only_several_in_a_row() {
        let (up, down) = (Ok(()), refused());
        let results = [
            &up, &down, &down, &up, &down, &down, &down, &up, &down, &up, &up,
        ];
        let passes = story(&results.map(Clone::clone));
        let expected = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1].map(|bit| bit == 1);
        assert_eq!(passes, expected);
        assert_eq!(story(&[down, up.clone(), up]), [false, false, true]);
    }

    #[test]
    fn a_new_reason_is_told_and_the_same_is_not() {
        let (mut checks, now) = (Checks::default(), Instant::now());
        checks.handle_wanted(&wanted(&[1]), now);
        for (turn, (why, news)) in [("a", true), ("a", false), ("b", true)]
            .into_iter()
            .enumerate()
        {
            let now = now + 2 * SECOND * turn as u32;
            let (due, _) = checks.poll_check(now).unwrap();
            let changed = checks.handle_result(&due, Err(why.to_owned()), now);
            assert_eq!((changed, &*checks.outcomes()[0].failed[0].why), (news, why));
        }
    }

    #[test]
    fn what_is_not_wanted_any_more_is_forgotten_and_the_rest_stays() {
        let (mut checks, now) = (Checks::default(), Instant::now());
        checks.handle_wanted(&wanted(&[1, 2]), now);
        assert!(!checks.is_settled());
        for _ in 0..2 {
            let (due, _) = checks.poll_check(now).unwrap();
            checks.handle_result(&due, Ok(()), now);
        }
        assert!(checks.is_settled());
        assert_eq!(checks.poll_timeout(), Some(now + 2 * SECOND));
        let late = now + 2 * SECOND;
        let (first, _) = checks.poll_check(late).unwrap();
        checks.handle_wanted(&wanted(&[2, 3]), late);
        assert!(
            !checks.handle_result(&first, refused(), late),
            "nobody asks for it now"
        );
        let known = checks.outcomes();
        assert_eq!((known.len(), &*known[0].passed), (1, &[subject(2).at][..]));
        assert!(!checks.is_settled());
        // Another way of checking begins anew.
        let other = [(subject(2), "http:/".parse().unwrap())].into();
        checks.handle_wanted(&other, late);
        assert!(checks.outcomes().is_empty());
    }
}
