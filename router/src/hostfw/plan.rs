//! Which rules of ours belong in a host's `filter` table, told from the table as `iptables -S` prints it.
//!
//! Where Docker is (the chain `DOCKER-USER` exists), the accepts for our own traffic stand at the head of that chain,
//! which Docker leaves to others; elsewhere, if the policy of `FORWARD` is drop or a rule there
//! drops or refuses all that comes to it, at the head of `FORWARD`. They accept
//! what passes between containers and other nodes, and the answers to what was accepted before; nothing from outside
//! comes in by them that was not asked for or translated to a container.
//!
//! What containers send to the outside is accepted at the *end* of `FORWARD`, or before the rule that refuses all: it
//! only overrides the policy, and every other rule of the host still has its say, such as those that keep Docker's
//! networks apart.

/// Arguments of one `iptables` call.
pub(super) type Step = Vec<String>;

/// What the comment of every rule of ours begins with.
pub const TAG: &str = "weave: ";

const USER: &str = "DOCKER-USER";
const FORWARD: &str = "FORWARD";

/// A rule that should be there.
#[derive(Debug)]
struct Wanted {
    chain: &'static str,
    /// `-I` for the head of the chain, `-A` for its end.
    place: &'static str,
    /// The number of the rule that it goes before, from 1; 0 if `place` says it.
    before: usize,
    matches: String,
    comment: String,
}

/// The steps from the table as printed to the table as it should be.
pub(super) fn wanted(listing: &str, tun: &str, veths: &str) -> Vec<Step> {
    let has = |line: &str| listing.lines().any(|found| found.trim() == line);
    let last = catch_all(listing);
    let drops = has("-P FORWARD DROP") || last.is_some();
    let mut wanted = Vec::new();
    if has("-N DOCKER-USER") {
        wanted.extend(between(USER, tun, veths));
    } else if drops {
        wanted.extend(between(FORWARD, tun, veths));
    }
    if drops {
        let outside = Wanted::new(FORWARD, "-A", format!("-i {veths}+"), "to the outside");
        wanted.push(match last {
            Some(before) => Wanted { before, ..outside },
            None => outside,
        });
    }
    let mut steps = Vec::new();
    let mut found: Vec<(&str, &str)> = Vec::new();
    for (chain, comment, rule) in ours(listing) {
        let known = wanted
            .iter()
            .any(|one| one.chain == chain && one.comment == comment);
        if known && !found.contains(&(chain, comment)) {
            found.push((chain, comment));
        } else {
            steps.push(delete(rule));
        }
    }
    // Inserted one before the other, so the last comes first.
    for one in wanted.iter().rev() {
        if !found.contains(&(one.chain, &one.comment)) {
            steps.push(one.step());
        }
    }
    steps
}

/// The number of the rule of `FORWARD` that drops or refuses whatever comes to it, as if it were the policy. Rules of ours
/// before it are counted: those that stay are there, and the ones that go do so where there is no such rule any more.
fn catch_all(listing: &str) -> Option<usize> {
    let rules = listing.lines().map(str::trim);
    let mut rules = rules.filter_map(|line| line.strip_prefix("-A FORWARD "));
    let ends = |rule: &str| rule == "-j DROP" || rule.starts_with("-j REJECT");
    rules.position(ends).map(|at| at + 1)
}

/// The steps that leave no rule of ours.
pub(super) fn none(listing: &str) -> Vec<Step> {
    ours(listing).map(|(_, _, rule)| delete(rule)).collect()
}

/// Our own traffic, and answers.
fn between(chain: &'static str, tun: &str, veths: &str) -> Vec<Wanted> {
    let answers = "-m conntrack --ctstate RELATED,ESTABLISHED";
    [
        (format!("-i {veths}+ -o {veths}+"), "between containers"),
        (format!("-i {veths}+ -o {tun}"), "to other nodes"),
        (format!("-i {tun} -o {veths}+"), "from other nodes"),
        (
            format!("-o {veths}+ {answers},DNAT"),
            "answers to containers",
        ),
        (format!("-o {tun} {answers},DNAT"), "answers to other nodes"),
        (format!("-i {tun} {answers}"), "answers from other nodes"),
    ]
    .map(|(matches, comment)| Wanted::new(chain, "-I", matches, comment))
    .into()
}

impl Wanted {
    fn new(chain: &'static str, place: &'static str, matches: String, comment: &str) -> Self {
        let comment = format!("{TAG}{comment}");
        Self {
            chain,
            place,
            before: 0,
            matches,
            comment,
        }
    }

    fn step(&self) -> Step {
        let mut step = vec![self.place.to_owned(), self.chain.to_owned()];
        if self.before > 0 {
            step = vec![
                "-I".to_owned(),
                self.chain.to_owned(),
                self.before.to_string(),
            ];
        }
        step.extend(self.matches.split(' ').map(str::to_owned));
        step.extend(
            ["-m", "comment", "--comment", &self.comment, "-j", "ACCEPT"].map(str::to_owned),
        );
        step
    }
}

/// The rules of ours in a printed table: chain, comment and the rule after `-A`.
fn ours(listing: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    listing.lines().filter_map(|line| {
        let rule = line.trim().strip_prefix("-A ")?;
        let (chain, _) = rule.split_once(' ')?;
        let (_, after) = rule.split_once("--comment \"")?;
        let (comment, _) = after.split_once('"')?;
        comment.starts_with(TAG).then_some((chain, comment, rule))
    })
}

/// Removes a rule as it was printed. Only comments are quoted, and ours hold no quotes.
fn delete(rule: &str) -> Step {
    let mut step = vec!["-D".to_owned()];
    for (place, part) in rule.split('"').enumerate() {
        match place {
            1 => step.push(part.to_owned()),
            _ => step.extend(part.split_whitespace().map(str::to_owned)),
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER\n-N DOCKER-USER\n\
        -A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -j DOCKER\n-A DOCKER-USER -j RETURN\n";

    /// The table after the steps, as `iptables -S` would print it.
    fn after(listing: &str, steps: &[Step]) -> String {
        let mut lines: Vec<String> = listing.lines().map(str::to_owned).collect();
        for step in steps {
            let number = step[2].parse::<usize>().ok().filter(|_| step[0] == "-I");
            let spoken = step.iter().enumerate();
            let spoken = spoken.filter(|(at, _)| *at != 2 || number.is_none());
            let words = spoken.map(|(_, word)| {
                if word.contains(' ') {
                    format!("\"{word}\"")
                } else {
                    word.clone()
                }
            });
            let rule = format!("-A {}", words.skip(1).collect::<Vec<_>>().join(" "));
            let of_chain = |line: &String| line.starts_with(&format!("-A {} ", step[1]));
            match step[0].as_str() {
                "-D" => _ = lines.remove(lines.iter().position(|line| *line == rule).unwrap()),
                "-I" => {
                    let first = lines.iter().position(of_chain).unwrap_or(lines.len());
                    lines.insert(first + number.unwrap_or(1) - 1, rule);
                }
                _ => lines.push(rule),
            }
        }
        lines.join("\n")
    }

    #[test]
    fn docker_s_chain_for_others_takes_them_once() {
        let steps = wanted(DOCKER, "weave0", "wv");
        assert_eq!(steps.len(), 7);
        assert!(
            steps
                .iter()
                .filter(|step| step[..2] == ["-I", "DOCKER-USER"])
                .count()
                == 6
        );
        assert!(
            steps
                .iter()
                .any(|step| step[..4] == ["-A", "FORWARD", "-i", "wv+"])
        );
        let then = after(DOCKER, &steps);
        assert!(wanted(&then, "weave0", "wv").is_empty(), "{then}");
        assert_eq!(after(&then, &none(&then)), DOCKER.trim_end());
        let first = then
            .lines()
            .find(|line| line.starts_with("-A DOCKER-USER"))
            .unwrap();
        assert!(first.contains("between containers"), "{then}");
    }

    #[test]
    fn a_policy_of_drop_alone_is_overridden_in_forward() {
        let listing = "-P FORWARD DROP\n-A FORWARD -s 1.2.3.4/32 -j DROP\n";
        let then = after(listing, &wanted(listing, "weave0", "wv"));
        assert_eq!(then.lines().filter(|line| line.contains(TAG)).count(), 7);
        assert!(
            then.lines().nth(1).unwrap().contains("between containers"),
            "{then}"
        );
        assert!(
            then.lines().last().unwrap().contains("to the outside"),
            "{then}"
        );
        assert!(wanted(&then, "weave0", "wv").is_empty());
    }

    #[test]
    fn a_rule_that_refuses_all_is_as_good_as_a_policy() {
        let refusal = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited";
        let listing = format!("-P FORWARD ACCEPT\n-A FORWARD -s 1.2.3.4/32 -j DROP\n{refusal}\n");
        let then = after(&listing, &wanted(&listing, "weave0", "wv"));
        let lines: Vec<&str> = then.lines().collect();
        assert!(lines[1].contains("between containers"), "{then}");
        assert_eq!(lines.last(), Some(&refusal));
        assert!(lines[lines.len() - 2].contains("to the outside"), "{then}");
        assert!(lines[lines.len() - 3].contains("1.2.3.4"), "{then}");
        assert!(wanted(&then, "weave0", "wv").is_empty(), "once");
        let open = then.replace(refusal, "-A FORWARD -j LOG");
        let gone = after(&open, &wanted(&open, "weave0", "wv"));
        assert!(!gone.contains(TAG), "{gone}");
    }

    #[test]
    fn what_lost_its_reason_goes() {
        let open = "-P FORWARD ACCEPT\n-A FORWARD -j LOG\n";
        assert!(wanted(open, "weave0", "wv").is_empty());
        let closed = "-P FORWARD DROP\n-A FORWARD -j LOG\n";
        let then = after(closed, &wanted(closed, "weave0", "wv")).replace("DROP", "ACCEPT");
        assert_eq!(
            after(&then, &wanted(&then, "weave0", "wv")),
            open.trim_end()
        );
        // Docker came later: the rules move to its chain.
        let then = after(closed, &wanted(closed, "weave0", "wv")) + "\n-N DOCKER-USER";
        let moved = after(&then, &wanted(&then, "weave0", "wv"));
        assert_eq!(moved.matches("-A DOCKER-USER").count(), 6);
        assert_eq!(moved.matches("-A FORWARD").count(), 2);
    }

    #[test]
    fn duplicates_go_and_others_comments_stay() {
        let then = after(DOCKER, &wanted(DOCKER, "weave0", "wv"));
        let line = then
            .lines()
            .find(|line| line.contains("to other nodes"))
            .unwrap();
        let foreign = "-A FORWARD -m comment --comment \"we weave: no\" -j DROP";
        let double = format!("{then}\n{line}\n{foreign}");
        let steps = wanted(&double, "weave0", "wv");
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0][0], "-D");
        assert!(after(&double, &none(&double)).contains(foreign));
    }
}
