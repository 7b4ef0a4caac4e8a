//! Reads a Rust file as tokens: what it names outside its tests, and how long it is without them.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One file, read: what it names outside its tests.
pub(crate) struct Source {
    /// From the root of the project, such as `router/src/path/cut.rs`.
    pub(crate) file: String,
    /// Every path of two or more segments; a `use` of a group is one path for each of its leaves.
    pub(crate) paths: Vec<Vec<String>>,
    pub(crate) lines: usize,
    pub(crate) starts_with_doc: bool,
    pub(crate) names_unsafe: bool,
    /// Modules declared under `#[cfg(test)]`, whose files are tests as a whole.
    pub(crate) test_modules: Vec<String>,
}

impl Source {
    pub(crate) fn read(file: &str, text: &str) -> Self {
        let tokens: TokenStream = text
            .parse()
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut source = Self {
            file: file.to_owned(),
            paths: Vec::new(),
            lines: text.lines().count(),
            starts_with_doc: text.starts_with("//!"),
            names_unsafe: false,
            test_modules: Vec::new(),
        };
        source.walk(&tokens.into_iter().collect::<Vec<_>>());
        source
    }

    fn walk(&mut self, tokens: &[TokenTree]) {
        let mut at = 0;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                at += self.skip_item(&tokens[at..]);
                continue;
            }
            match &tokens[at] {
                TokenTree::Group(group) => {
                    self.walk(&group.stream().into_iter().collect::<Vec<_>>())
                }
                TokenTree::Ident(name) if name == "unsafe" => self.names_unsafe = true,
                TokenTree::Ident(_) => {
                    let before = self.paths.len();
                    at += read_path(&tokens[at..], &[], &mut self.paths);
                    let found = self.paths.split_off(before);
                    self.paths
                        .extend(found.into_iter().filter(|path| path.len() > 1));
                    continue;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            at += 1;
        }
    }

    /// Leaves out the item that a test attribute stands before; returns how many tokens that are.
    fn skip_item(&mut self, tokens: &[TokenTree]) -> usize {
        let ends = |token: &TokenTree| match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            TokenTree::Punct(mark) => mark.as_char() == ';',
            TokenTree::Ident(_) | TokenTree::Literal(_) => false,
        };
        let last = tokens.iter().position(ends).unwrap_or(tokens.len() - 1);
        self.lines -= tokens[last].span().end().line - tokens[0].span().start().line + 1;
        if let [
            ..,
            TokenTree::Ident(word),
            TokenTree::Ident(name),
            TokenTree::Punct(_),
        ] = &tokens[..=last]
            && word == "mod"
        {
            self.test_modules.push(name.to_string());
        }
        last + 1
    }

    /// `["path", "cut"]` for `router/src/path/cut.rs`; the crate's root is empty.
    pub(crate) fn module(&self) -> Vec<String> {
        let inner = self
            .file
            .split_once("src/")
            .map_or(self.file.as_str(), |(_, inner)| inner);
        let inner = inner.trim_end_matches(".rs");
        let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
        if ["lib", "main", "mod"].contains(&module.last().map_or("", String::as_str)) {
            module.pop();
        }
        module
    }
}

fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Punct(mark), TokenTree::Group(group), ..] = tokens else {
        return false;
    };
    let text = group.stream().to_string().replace(' ', "");
    mark.as_char() == '#' && (text == "cfg(test)" || text.starts_with("cfg(all(test"))
}

/// Reads the path or `use` tree that starts at `tokens[0]`, adds its leaves, returns how many tokens it took.
fn read_path(tokens: &[TokenTree], prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let is_colon =
        |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    match tokens.first() {
        Some(TokenTree::Group(tree)) => {
            let inner: Vec<TokenTree> = tree.stream().into_iter().collect();
            let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
            for branch in inner.split(comma) {
                read_path(branch, prefix, found);
            }
            1
        }
        Some(TokenTree::Ident(name)) => {
            let path = [prefix, &[name.to_string()]].concat();
            let goes_on = match tokens.get(3) {
                Some(TokenTree::Ident(_)) => true,
                Some(TokenTree::Group(group)) => group.delimiter() == Delimiter::Brace,
                _ => false,
            };
            if is_colon(1) && is_colon(2) && goes_on {
                return 3 + read_path(&tokens[3..], &path, found);
            }
            found.push(path);
            1
        }
        _ => 0,
    }
}
