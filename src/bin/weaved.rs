//! The `weaved` binary; see [`weave::daemon`].

use std::process::ExitCode;

fn main() -> ExitCode {
    weave::daemon::main()
}
