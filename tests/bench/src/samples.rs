//! The gateway's metrics as they are exported: names, labels and values.

use std::io;

/// Samples of one moment.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<(String, f64)>);

impl Samples {
    /// Reads an HTTP answer with metrics in text form.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(answer: &[u8]) -> io::Result<Self> {
        let answer = String::from_utf8_lossy(answer);
        let good = answer.starts_with("HTTP/1.1 200");
        let Some((_, text)) = answer.split_once("\r\n\r\n").filter(|_| good) else {
            let line = answer.lines().next().unwrap_or_default();
            return Err(io::Error::other(format!("no metrics: {line}")));
        };
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Ok(Self(lines.filter_map(sample).collect()))
    }

    /// The sum of all series of this name that carry `label` (`name="value"`, or nothing for all).
    #[must_use]
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let of_name = |series: &str| {
            let labels = series.strip_prefix(name)?;
            (labels.is_empty() || labels.starts_with('{')).then(|| labels.contains(label))
        };
        let chosen = self.0.iter().filter(|(series, _)| of_name(series) == Some(true));
        chosen.map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_label() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n\
            # TYPE a_total counter\na_total{part=\"x\",b=\"1\"} 2\na_total{part=\"y\"} 3\n\
            a_total_more 7\nb_sum 0.5\n";
        let samples = Samples::parse(answer).unwrap();
        assert_eq!(samples.sum("a_total", ""), 5.0);
        assert_eq!(samples.sum("a_total", "part=\"x\""), 2.0);
        assert_eq!(samples.sum("b_sum", ""), 0.5);
        assert_eq!(samples.sum("c", ""), 0.0);
        assert!(Samples::parse(b"HTTP/1.1 401 Unauthorized\r\n\r\n").is_err());
    }
}
