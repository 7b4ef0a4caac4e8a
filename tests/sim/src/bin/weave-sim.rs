//! Runs stories from seeds, and tells the shortest story of what breaks: `./run sim`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use weave_sim::play::play;
use weave_sim::shrink::shrink;
use weave_sim::story::Story;

/// Whole clusters in virtual time, each from one seed.
#[derive(Debug, Parser)]
#[command(name = "./run sim")]
struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, from the first one on
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// How many nodes, 2 to 60
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(2..=60))]
    nodes: u64,
    /// How many hours each story lasts there
    #[arg(long, default_value_t = 1.0)]
    hours: f64,
    /// All the time nodes leave, are removed and join
    #[arg(long)]
    churn: bool,
    /// Tell the whole story first
    #[arg(long)]
    tell: bool,
    /// Only these events of it, by the numbers that it is told with
    #[arg(long, value_delimiter = ',')]
    only: Vec<usize>,
    /// How many runs to spend on a shorter story of what breaks
    #[arg(long, default_value_t = 300)]
    shrink: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // What a core or the cluster around it panics with is told with its story.
    std::panic::set_hook(Box::new(|_| ()));
    let time = Duration::from_secs_f64(args.hours.max(0.0) * 3600.0);
    for seed in args.seed..args.seed + args.seeds {
        let mut story = Story::new(seed, args.nodes as usize, time);
        if args.churn {
            story = story.with_coming_and_going();
        }
        if !args.only.is_empty() {
            story = story.only(&args.only);
        }
        if args.tell {
            print!("{story}");
        }
        let begun = Instant::now();
        match play(&story) {
            Ok(outcome) => println!(
                "seed {seed}: {} nodes, {:.2} h, {} acts, {} addresses, {} datagrams, {} events, trace {:016x}, {:.1} s",
                args.nodes,
                outcome.time.as_secs_f64() / 3600.0,
                story.acts.len(),
                outcome.addresses,
                outcome.datagrams,
                outcome.events,
                outcome.trace,
                begun.elapsed().as_secs_f64()
            ),
            Err(failure) => {
                println!(
                    "seed {seed} breaks after {:?}: {}",
                    failure.at, failure.what
                );
                let (story, failure) = shrink(&story, &failure, args.shrink);
                print!("\nthe shortest story found:\n{story}");
                println!("breaks after {:?}: {}", failure.at, failure.what);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
