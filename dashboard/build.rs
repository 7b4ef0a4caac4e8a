//! Lists the files of the page, which `./run` builds into `web/dist`, so that the binary carries them.
//!
//! Without them the crate builds all the same, with an empty list: the server then says how to get the page. The files are
//! copied first, so that a page that is built anew meanwhile does no harm.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let dist = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("web/dist");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", dist.display());
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    let mut list = String::from("&[\n");
    for (number, file) in compressed(&dist).into_iter().enumerate() {
        let path = file.strip_prefix(&dist).expect("it lies in there");
        let path = path.with_extension("");
        println!("cargo::rerun-if-changed={}", file.display());
        let copy = format!("page-{number}.gz");
        fs::copy(&file, out.join(&copy)).expect("a file that was just listed can be copied");
        writeln!(
            list,
            "    (\"/{}\", include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{copy}\"))),",
            path.display(),
        )
        .expect("a string can be written to");
    }
    list.push(']');
    fs::write(out.join("page.rs"), list).expect("the output directory can be written");
}

/// Every `*.gz` below a folder, in the order of their names; none if there is no such folder.
fn compressed(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "gz") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
