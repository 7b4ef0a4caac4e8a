//! What a cluster costs by its size: `./run bench mesh`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use weave_sim::scale::{Figures, measure};

/// Whole clusters in virtual time that come together, change and rest; each size in a process of its own
#[derive(Debug, Parser)]
#[command(name = "./run bench mesh")]
struct Args {
    /// How many nodes, one cluster after another
    #[arg(long, value_delimiter = ',', default_values_t = [10, 30, 100, 300, 1000])]
    nodes: Vec<usize>,
    /// From which everything follows but CPU and memory
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also write the figures there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure one size here and print its line only
    #[arg(long, hide = true)]
    one: bool,
}

/// One line of JSON.
fn line(figures: &Figures) -> String {
    let Figures {
        nodes,
        cold_start,
        cold_cpu,
        change,
        idle_bytes,
        idle_cpu,
        sessions,
        table,
        memory,
    } = figures;
    format!(
        r#"{{"nodes":{nodes},"cold_start_s":{cold_start:.2},"cold_cpu_ms_a_node":{cold_cpu:.1},"change_p50_ms":{:.0},"change_p99_ms":{:.0},"idle_bytes_a_second":{idle_bytes:.0},"idle_cpu_us_a_second":{idle_cpu:.0},"sessions":{sessions:.1},"table_kb":{:.0},"memory_kb_a_node":{:.0}}}"#,
        change.0,
        change.1,
        table / 1e3,
        memory / 1e3
    )
}

fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let after = line.split(&format!("\"{name}\":")).nth(1).unwrap_or("?");
    after.split([',', '}']).next().unwrap_or("?")
}

/// Bars whose lengths are in the proportion of the values.
fn plot(title: &str, name: &str, lines: &[String]) {
    let value = |line: &String| field(line, name).parse::<f64>().unwrap_or(0.0);
    let most = lines.iter().map(value).fold(f64::MIN_POSITIVE, f64::max);
    println!("\n{title}");
    for line in lines {
        let bar = "#".repeat((value(line) / most * 60.0).ceil() as usize);
        println!("{:>7} {bar} {}", field(line, "nodes"), field(line, name));
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let (true, [nodes]) = (args.one, &args.nodes[..]) {
        println!("{}", line(&measure(args.seed, *nodes)));
        return ExitCode::SUCCESS;
    }
    println!(
        "  nodes  cold start    CPU a node  change p50    p99     idle       idle CPU  sessions    table    memory"
    );
    let mut lines = Vec::new();
    for nodes in &args.nodes {
        let here = std::env::current_exe().expect("a running program has a path");
        let output = std::process::Command::new(here)
            .args(["--one", "--seed", &args.seed.to_string()])
            .args(["--nodes", &nodes.to_string()])
            .stderr(std::process::Stdio::inherit())
            .output();
        let text = match output {
            Ok(output) if output.status.success() => output.stdout,
            _ => return ExitCode::FAILURE,
        };
        let line = String::from_utf8_lossy(&text).trim().to_owned();
        let of = |name| field(&line, name);
        println!(
            "{:>7}  {:>8} s  {:>9} ms  {:>7} ms  {:>4} ms  {:>6} B/s  {:>6} µs/s  {:>8}  {:>4} kB  {:>6} kB",
            of("nodes"),
            of("cold_start_s"),
            of("cold_cpu_ms_a_node"),
            of("change_p50_ms"),
            of("change_p99_ms"),
            of("idle_bytes_a_second"),
            of("idle_cpu_us_a_second"),
            of("sessions"),
            of("table_kb"),
            of("memory_kb_a_node")
        );
        lines.push(line);
    }
    plot(
        "idle, bytes a second and node",
        "idle_bytes_a_second",
        &lines,
    );
    plot("sessions of a node", "sessions", &lines);
    plot(
        "coming together, ms of CPU a node",
        "cold_cpu_ms_a_node",
        &lines,
    );
    plot("table, kB a node", "table_kb", &lines);
    let json = format!("[\n{}\n]\n", lines.join(",\n"));
    match args.json.map(|path| std::fs::write(path, json)) {
        Some(Err(error)) => {
            eprintln!("the figures were not written: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
