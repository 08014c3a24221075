//! A table for people.

/// Lays `rows` out in columns; the first row is the heading, the first two columns are words.
#[must_use]
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            let words = column < 2;
            let (before, after) = if words { ("", &*padding) } else { (&*padding, "") };
            line += &format!("{before}{cell}{after}  ");
        }
        text += line.trim_end();
        text += "\n";
        if number == 0 {
            text += &"-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1));
            text += "\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let table = aligned(&[row(["a", "b", "µs"]), row(["long", "x", "12.5"])]);
        assert_eq!(table, "a     b    µs\n-------------\nlong  x  12.5\n");
    }
}
