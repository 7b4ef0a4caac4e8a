//! Tab in real shells: each asks `weavectl` with the script that it printed, and that asks a real node.

use std::process::Command;
use std::time::Duration;

use crate::lab::node::{Said, WEAVECTL, said};
use crate::lab::traffic::wait_for;
use crate::lab::{Host, Lab};

/// The shells that have a script.
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// How long a word may take to be known.
const PATIENCE: Duration = Duration::from_secs(15);

/// Bash, as its line editor calls a completion function. `$1` is the line.
const BASH: &str = "source <(weavectl completion bash)
    read -ra COMP_WORDS <<<\"$1\"; [[ $1 != *' ' ]] || COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9
    _clap_complete_weavectl weavectl \"${COMP_WORDS[COMP_CWORD]}\" x
    IFS=$'\\n'; echo \"${COMPREPLY[*]}\"";

/// fish, which completes a line by itself.
const FISH: &str = "weavectl completion fish | source; complete --do-complete $argv[1]";

/// zsh at a terminal of its own: the line is typed, then Tab, and, as Tab means nothing to it while more is coming in, a
/// moment later, until it is heard, a key that prints what the line has become. `$1` is the line.
const ZSH: &str = "zmodload zsh/zpty; zpty shell zsh -f -i
    say() { zpty -w shell \"$1\" }
    say 'PS1= PROMPT_EOL_MARK= TERM=dumb; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D'
    say 'source <(weavectl completion zsh); told() { print -r -- \"<<$BUFFER>>\" }; zle -N told; bindkey ^X told'
    heard= piece=
    hear() { until [[ $heard == *$1* ]]; do zpty -r shell piece; heard+=$piece; done }
    say 'print rea\"\"dy'; hear ready; sleep 0.2; heard=
    zpty -w -n shell \"$1\"$'\\t'
    until [[ $heard == *'>>'* ]]; do
      sleep 1; zpty -w -n shell $'\\x18'; sleep 0.2
      while zpty -rt shell piece; do heard+=$piece; done
    done
    print -r -- ${${heard#*<<}%%>>*}; zpty -d shell";

/// What a shell says when Tab is pressed behind these words.
fn tab(host: &Host, shell: &str, line: &str) -> String {
    let tools = std::path::Path::new(WEAVECTL).parent();
    let tools = tools.expect("it is in a folder").display();
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("timeout");
    command.arg("30").arg(shell).env("PATH", path);
    command.env("WEAVE_SOCKET", host.socket());
    match shell {
        "bash" => command.args(["--norc", "-c", BASH, shell, line]),
        "zsh" => command.args(["-f", "-c", ZSH, shell, line]),
        _ => command.args(["--no-config", "-c", FISH, line]),
    };
    let Said { code, out, err } = said(&mut command);
    assert_eq!((code, err.as_str()), (0, ""), "{shell}: {line}: {out}");
    out
}

/// Every word that names something is completed with what there is, in every shell, and with nothing else.
#[test]
fn shells_complete_what_the_node_knows() {
    Lab::run(|lab| {
        let [h1, h2] = &lab.cluster::<2>();
        h1.ok(&["network", "create", "blue", "--range", "10.47.0.0/24"]);
        h1.attach("web-of-h1");
        h2.attach("web-of-h2");
        let words = "service create shop --port 80 --selector app=shop";
        h1.ok(&words.split(' ').collect::<Vec<_>>());
        h1.ok(&["token", "create"]);
        h1.ok(&["connect", "192.168.77.9"]);
        let tokens = h1.json(&["token", "list"]);
        let good = tokens["tokens"].as_array().into_iter().flatten();
        let mut good = good.filter(|token| token["state"] == "good");
        let token = good.next().and_then(|token| token["id"].as_str());
        let token = &token.expect("it was just made")[..12];
        let revoked = format!("token revoke {}", &token[..4]);
        let words: [(&str, &str, &[&str]); 18] = [
            ("detach w", "web-of-h1", &["web-of-h2"]),
            ("capture w", "web-of-h1", &["web-of-h2"]),
            ("trace web-of-h1 w", "web-of-h1", &["web-of-h2"]),
            ("flows --from web-of-h2", "web-of-h2", &["web-of-h1"]),
            ("processes web-of-h2", "web-of-h2", &["web-of-h1"]),
            ("processes h2", "h2", &["h1", "web"]),
            ("ping h", "h2", &["h1"]),
            ("test h", "h2", &["h1"]),
            ("rmpeer h", "h2", &["h1"]),
            ("rmpeer x --heir h", "h2", &["h1"]),
            ("capture --peer h", "h2", &["h1"]),
            ("admin add h", "h2", &["h1"]),
            ("network rm b", "blue", &["default"]),
            ("attach x --network b", "blue", &["default"]),
            ("service describe s", "shop", &["blue"]),
            ("service rm s", "shop", &["blue"]),
            (&revoked, token, &["shop"]),
            ("forget 192", "192.168.77.9:6783", &["192.168.77.2"]),
        ];
        for (shell, (line, expected, not)) in SHELLS
            .iter()
            .flat_map(|shell| words.map(|words| (shell, words)))
        {
            let mut told = String::new();
            // What other nodes have comes within moments of its being asked for.
            wait_for(&format!("{shell}: {line}"), PATIENCE, || {
                told = tab(h1, shell, &format!("weavectl {line}"));
                told.contains(expected)
            });
            for other in not {
                let typed = line.contains(other);
                assert!(typed || !told.contains(other), "{shell}: {line}: {told}");
            }
        }
        for shell in SHELLS {
            let told = tab(h1, shell, "weavectl serv");
            assert!(told.contains("service"), "{shell}: {told}");
            let socket = h2.socket().display().to_string();
            let told = tab(h1, shell, &format!("weavectl --socket {socket} detach w"));
            assert!(told.contains("web-of-h2"), "{shell}: another node: {told}");
            let told = tab(h1, shell, "weavectl --socket /nowhere detach w");
            assert!(!told.contains("web-of"), "{shell}: no node: {told}");
        }
        println!("{} words in {} shells", words.len(), SHELLS.len());
    });
}
