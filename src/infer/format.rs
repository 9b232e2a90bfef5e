//! What a sample is encoded in.

use crate::config::{Csv, Envelope, Format};

use super::table::{Value, json_row};
use super::time::Clock;

/// Lines that are looked at to tell formats apart.
const LOOKED_AT: usize = 200;
/// Share of lines that must be what a format calls for.
const MOST: f64 = 0.95;
/// Delimiters that are tried, the likeliest first.
const DELIMITERS: [char; 4] = [',', ';', '\t', '|'];

/// A format of text, with what is needed to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct TextFormat {
    pub format: Format,
    /// The dialect. Its `columns` are those of the header, if there is one.
    pub csv: Csv,
    /// Whether the first line names the columns.
    pub header: bool,
    pub envelope: Envelope,
}

impl TextFormat {
    fn of(format: Format) -> Self {
        Self { format, csv: Csv::default(), header: false, envelope: Envelope::None }
    }
}

/// The format that the first bytes of a file give away.
pub fn binary_format(bytes: &[u8]) -> Option<Format> {
    // An Arrow stream begins with a continuation mark.
    let marks: [(&[u8], Format); 4] = [
        (b"PAR1", Format::Parquet),
        (b"Obj\x01", Format::Avro),
        (b"ARROW1", Format::Arrow),
        (&[0xff; 4], Format::Arrow),
    ];
    marks.iter().find(|(mark, _)| bytes.starts_with(mark)).map(|(_, format)| *format)
}

/// Whether a Kafka message is Avro in Confluent's wire format: a zero byte, four bytes of the
/// schema's id, the record. Ids are counted from 1 and seldom get far.
pub fn is_confluent(payload: &[u8]) -> bool {
    matches!(payload, [0, 0, _, _, _, _, ..] if payload[2..5] != [0; 3])
}

/// The format of lines of text. `named` is what the file's extension says.
pub fn text_format(lines: &[&str], named: Option<Format>) -> TextFormat {
    let lines: Vec<&str> =
        lines.iter().copied().filter(|line| !line.trim().is_empty()).take(LOOKED_AT).collect();
    if let Some(format) = json(&lines) {
        return format;
    }
    let tables = DELIMITERS.iter().filter_map(|delimiter| table(&lines, *delimiter));
    let widest = tables.max_by_key(|(columns, _)| *columns);
    match widest {
        Some((_, csv)) if named == Some(Format::Csv) || csv.has_numbers => csv.into_format(),
        // One column, under its name.
        _ if named == Some(Format::Csv) => Rows::read(&lines, ',').into_format(),
        _ => TextFormat::of(Format::Log),
    }
}

fn json(lines: &[&str]) -> Option<TextFormat> {
    let rows: Vec<_> = lines.iter().filter_map(|line| json_row(line).ok()).collect();
    if rows.is_empty() || (rows.len() as f64) < MOST * lines.len() as f64 {
        return None;
    }
    let is_resource = |row: &Vec<(String, Value)>| {
        let resource = row.iter().find(|(field, _)| field == "resourceType");
        let kinds = ["Observation", "Bundle"];
        resource.is_some_and(|(_, kind)| kinds.contains(&kind.to_string().as_str()))
    };
    if rows.iter().all(is_resource) {
        return Some(TextFormat::of(Format::Fhir));
    }
    let is_wrapped = |row: &Vec<(String, Value)>| {
        let of = |name: &str| row.iter().any(|(field, _)| field.starts_with(name));
        of("schema.") && of("payload.")
    };
    let envelope = if rows.iter().all(is_wrapped) { Envelope::Connect } else { Envelope::None };
    Some(TextFormat { envelope, ..TextFormat::of(Format::Json) })
}

/// The lines read with a delimiter, if they have as many columns each, and more than one.
fn table(lines: &[&str], delimiter: char) -> Option<(usize, Rows)> {
    let rows = Rows::read(lines, delimiter);
    let width = rows.rows.get(rows.rows.len() / 2)?.len();
    let alike = rows.rows.iter().filter(|row| row.len() == width).count();
    let is_table = width > 1 && alike as f64 >= MOST * rows.rows.len() as f64;
    is_table.then_some((width, rows))
}

struct Rows {
    delimiter: char,
    rows: Vec<Vec<String>>,
    has_numbers: bool,
}

impl Rows {
    fn read(lines: &[&str], delimiter: char) -> Self {
        let rows: Vec<Vec<String>> = csv_rows(&lines.join("\n"), delimiter).collect();
        let is_number = |cell: &String| Value::of_text(cell).number().is_some();
        let numbers = |row: &Vec<String>| row.iter().any(is_number);
        let with_numbers = rows.iter().filter(|row| numbers(row)).count();
        // The header has none.
        let has_numbers = with_numbers > 0 && with_numbers + 1 >= rows.len() * 9 / 10;
        Self { delimiter, rows, has_numbers }
    }

    fn into_format(self) -> TextFormat {
        let first = self.rows.first().cloned().unwrap_or_default();
        let below = self.rows.iter().skip(1).take(20);
        let header = !first.iter().any(|cell| is_measured(cell))
            && below.clone().any(|row| row.iter().any(|cell| is_measured(cell)))
            && first.iter().skip(1).all(|name| !name.trim().is_empty());
        let columns = if header { first } else { Vec::new() };
        let csv = Csv { delimiter: self.delimiter, columns };
        TextFormat { header, csv, ..TextFormat::of(Format::Csv) }
    }
}

/// Whether a cell holds a number or a time.
fn is_measured(cell: &str) -> bool {
    Value::of_text(cell).number().is_some() || Clock::of_text(cell).is_some()
}

/// The rows of CSV; what is not UTF-8 or ends in the middle is left out.
pub(super) fn csv_rows(text: &str, delimiter: char) -> impl Iterator<Item = Vec<String>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(u8::try_from(delimiter).unwrap_or(b','))
        .from_reader(text.as_bytes());
    let rows = std::iter::from_fn(|| {
        let mut record = csv::StringRecord::new();
        reader.read_record(&mut record).ok()?.then_some(record)
    });
    let rows: Vec<Vec<String>> =
        rows.map(|record| record.iter().map(str::to_owned).collect()).collect();
    rows.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> TextFormat {
        text_format(&text.lines().collect::<Vec<_>>(), None)
    }

    fn delimiter_and_header(text: &str) -> (char, bool) {
        let found = of(text);
        assert_eq!(found.format, Format::Csv, "{text}");
        (found.csv.delimiter, found.header)
    }

    #[test]
    fn delimiter_and_header_of_csv_are_found() {
        for (text, expected) in [
            ("t,a,b\n2024-01-01 00:00:00,1,2\n2024-01-01 00:00:01,2,3\n", (',', true)),
            ("t;a;b\n2024-01-01 00:00:00;1.5;2\n2024-01-01 00:00:01;2;3\n", (';', true)),
            ("1704164645\t3\t4\n1704164646\t4\t5\n", ('\t', false)),
            ("m1|1704164645|\"a|b\"|4\nm2|1704164646|c|5\n", ('|', false)),
            // A decimal comma makes more columns, but not the same number in each row.
            ("t;a;b\n2024-01-01;1,5;1\n2024-01-02;2;3\n2024-01-03;2,5;2\n", (';', true)),
        ] {
            assert_eq!(delimiter_and_header(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_with_commas_are_not_csv() {
        let lines = "2015-07-29 17:41:44,747 - INFO one\n2015-07-29 19:04:12,394 - WARN two\n";
        assert_eq!(of(lines).format, Format::Log);
        let named = text_format(&["value", "1", "2"], Some(Format::Csv));
        assert_eq!((named.format, named.header), (Format::Csv, true));
    }

    #[test]
    fn json_its_envelope_and_fhir_are_told_apart() {
        assert_eq!(of("{\"a\":1}\n{\"a\":2}\n").envelope, Envelope::None);
        let wrapped = of("{\"schema\":{\"type\":\"struct\"},\"payload\":{\"a\":1}}\n");
        assert_eq!((wrapped.format, wrapped.envelope), (Format::Json, Envelope::Connect));
        assert_eq!(of("{\"resourceType\":\"Observation\"}\n").format, Format::Fhir);
        assert_eq!(of("{\"resourceType\":\"Patient\"}\n").format, Format::Json);
        assert_eq!(of("{\n\"a\":1}\n").format, Format::Log);
    }

    #[test]
    fn binary_formats_are_known_by_their_first_bytes() {
        assert_eq!(binary_format(b"PAR1...."), Some(Format::Parquet));
        assert_eq!(binary_format(b"Obj\x01...."), Some(Format::Avro));
        assert_eq!(binary_format(&[0xff, 0xff, 0xff, 0xff, 0, 1]), Some(Format::Arrow));
        assert_eq!(binary_format(b"t,a\n"), None);
        assert!(is_confluent(&[0, 0, 0, 0, 7, 1, 2]));
        assert!(!is_confluent(b"{\"a\":1}") && !is_confluent(&[0; 8]) && !is_confluent(&[0, 0]));
    }
}
