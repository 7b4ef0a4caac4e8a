//! Aligned columns for people: a heading, rows, two spaces between, nothing else.

/// Which columns a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// Those that a person looks for.
    Usual,
    /// Everything that fits a line.
    All,
}

/// A table that is printed when all its rows are known.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with its headings.
    pub(super) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()],
        }
    }

    /// The same, with more headings when all columns are asked for.
    pub(super) fn with(headings: &[&str], columns: Columns, more: &[&str]) -> Self {
        match columns {
            Columns::Usual => Self::new(headings),
            Columns::All => Self::new(&[headings, more].concat()),
        }
    }

    /// Adds a row of as many cells as there are headings; an empty cell shows as `-`.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = cells.into_iter().map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            }
        });
        self.rows.push(shown.collect());
    }

    /// The table as text, a newline after each row.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| format!("{cell:<width$}"))
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A process may call itself anything, and a runtime its containers, also what a terminal would obey.
pub(super) fn printable(name: &str) -> String {
    name.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_do_not_trail() {
        let mut table = Table::new(&["NAME", "IP"]);
        table.row(["a".to_owned(), "10.32.0.2".to_owned()]);
        table.row(["longer".to_owned(), String::new()]);
        assert_eq!(table.render(), "NAME    IP\na       10.32.0.2\nlonger  -\n");
    }
}
