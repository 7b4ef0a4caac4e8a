//! The `weavectl` binary; see [`weave::cli`].

fn main() -> weave::cli::Exit {
    weave::cli::main()
}
