//! A picture of a series: its channels, its score, its alerts and its labels.

use std::ops::Range;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::EvaluateError;
use super::measures::ranges;
use crate::decode::{FIRST_CHANNEL_COLUMN, OFFSET_COLUMN};

/// The values that a series' rows hold, as they were decoded.
#[derive(Clone, Debug)]
pub struct Traces {
    /// Line at which each row of the file begins.
    lines: Vec<i64>,
    /// Name and values by row of each channel, NaN where there is none.
    channels: Vec<(String, Vec<f32>)>,
}

/// What there is to draw of one series, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Stands above it.
    pub title: &'a str,
    pub traces: &'a Traces,
    pub scores: &'a [f64],
    pub alerts: &'a [bool],
    /// Ranges of rows that are labelled anomalous.
    pub labels: &'a [Range<usize>],
}

/// Pixels.
const WIDTH: u32 = 1200;
const CHANNEL_HEIGHT: u32 = 110;
const SCORE_HEIGHT: u32 = 150;
const TITLE_HEIGHT: u32 = 30;
const LABEL_AREA: u32 = 60;
/// Of very wide records the first ones are drawn.
const MOST_CHANNELS: usize = 16;
/// Rows drawn one by one; of more, the smallest and the largest value of each of half as many
/// stretches are, so that no spike is lost.
const POINTS: usize = 2400;

const LABELLED: RGBColor = RGBColor(214, 39, 40);
const ALERT: RGBColor = RGBColor(255, 127, 14);
const VALUES: RGBColor = RGBColor(31, 119, 180);

impl Traces {
    /// Nothing known yet of the rows that begin at `lines`.
    pub fn new(lines: Vec<i64>) -> Self {
        Self { channels: Vec::new(), lines }
    }

    /// Notes decoded records, all of one schema.
    pub fn take(&mut self, records: &RecordBatch) {
        let lines = records.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
        let columns = records.columns().iter().skip(FIRST_CHANNEL_COLUMN);
        let columns = columns.filter_map(|column| column.as_primitive_opt::<Float32Type>());
        if self.channels.is_empty() {
            let (schema, rows) = (records.schema(), self.lines.len());
            let names = schema.fields().iter().skip(FIRST_CHANNEL_COLUMN).map(|field| field.name());
            let channels = names.map(|name| (name.clone(), vec![f32::NAN; rows]));
            self.channels = channels.take(MOST_CHANNELS).collect();
        }
        for ((_, values), column) in self.channels.iter_mut().zip(columns) {
            for (line, value) in lines.values().iter().zip(column) {
                let row = self.lines.partition_point(|first| first <= line).checked_sub(1);
                if let (Some(row), Some(value)) = (row, value) {
                    values[row] = value;
                }
            }
        }
    }
}

impl Picture<'_> {
    /// Writes it as an SVG file at `path`; its folder is made.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), EvaluateError> {
        let failed = |reason: &dyn std::fmt::Display| EvaluateError::file(path, reason);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        }
        let svg = self.svg().map_err(|error| failed(&error))?;
        std::fs::write(path, svg).map_err(|error| failed(&error))
    }

    fn svg(&self) -> Result<String, Box<dyn std::error::Error>> {
        let channels = self.traces.channels.len() as u32;
        let height = TITLE_HEIGHT + channels * CHANNEL_HEIGHT + SCORE_HEIGHT;
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
            area.fill(&WHITE)?;
            let (title, mut rest) = area.split_vertically(TITLE_HEIGHT);
            title.draw(&Text::new(self.title, (LABEL_AREA as i32, 8), ("sans-serif", 16)))?;
            for (name, values) in &self.traces.channels {
                let (panel, below) = rest.split_vertically(CHANNEL_HEIGHT);
                rest = below;
                let values = values.iter().map(|value| f64::from(*value));
                self.panel(&panel, name, &envelope(values), None, false)?;
            }
            self.panel(
                &rest,
                "score",
                &envelope(self.scores.iter().copied()),
                Some(0.0..1.0),
                true,
            )?;
            area.present()?;
        }
        Ok(svg)
    }

    /// One line over the rows, with what is labelled behind it and alerts at its foot.
    fn panel(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        name: &str,
        pieces: &[Vec<(usize, f64)>],
        bounds: Option<Range<f64>>,
        is_last: bool,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let rows = self.scores.len().max(1);
        let bounds = bounds.unwrap_or_else(|| bounds_of(pieces));
        let mut chart = ChartBuilder::on(area)
            .margin_right(12)
            .margin_top(6)
            .set_label_area_size(LabelAreaPosition::Left, LABEL_AREA)
            .set_label_area_size(LabelAreaPosition::Bottom, if is_last { 24 } else { 4 })
            .build_cartesian_2d(0.0..rows as f64, bounds.clone())?;
        let height = bounds.end - bounds.start;
        let band = |range: &Range<usize>, top: f64, style: ShapeStyle| {
            // At least a pixel wide.
            let end = range.end.max(range.start + rows / WIDTH as usize).min(rows);
            let corners = [(range.start, bounds.start), (end, bounds.start + top * height)];
            Rectangle::new(corners.map(|(row, value)| (row as f64, value)), style)
        };
        chart.draw_series(
            self.labels.iter().map(|range| band(range, 1.0, LABELLED.mix(0.15).filled())),
        )?;
        let alerts = ranges(self.alerts);
        chart.draw_series(alerts.iter().map(|range| band(range, 0.08, ALERT.filled())))?;
        let mut mesh = chart.configure_mesh();
        let row_label = |row: &f64| if is_last { format!("{row:.0}") } else { String::new() };
        mesh.disable_mesh()
            .x_label_formatter(&row_label)
            .y_labels(3)
            .y_desc(name)
            .axis_desc_style(("sans-serif", 12));
        mesh.draw()?;
        for piece in pieces {
            chart.draw_series(LineSeries::new(
                piece.iter().map(|(row, value)| (*row as f64, *value)),
                VALUES,
            ))?;
        }
        Ok(())
    }
}

/// Lines over the rows with a value, broken where there is none, of bounded length.
fn envelope(values: impl ExactSizeIterator<Item = f64>) -> Vec<Vec<(usize, f64)>> {
    let stretch = (2 * values.len()).div_ceil(POINTS);
    let mut rows = values.enumerate().peekable();
    let mut pieces = vec![Vec::new()];
    while let Some((start, _)) = rows.peek().copied() {
        let mut extremes: Option<[(usize, f64); 2]> = None;
        while let Some((row, value)) = rows.next_if(|(row, _)| *row < start + stretch.max(1)) {
            if !value.is_finite() {
                continue;
            }
            let [smallest, largest] = extremes.get_or_insert([(row, value); 2]);
            if value < smallest.1 {
                *smallest = (row, value);
            }
            if value > largest.1 {
                *largest = (row, value);
            }
        }
        match (extremes, pieces.last_mut()) {
            (Some([one, other]), Some(piece)) => {
                piece.push(if one.0 <= other.0 { one } else { other });
                if one.0 != other.0 {
                    piece.push(if one.0 <= other.0 { other } else { one });
                }
            }
            (None, Some(piece)) if !piece.is_empty() => pieces.push(Vec::new()),
            _ => {}
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// The range that all values lie in, with some room.
fn bounds_of(pieces: &[Vec<(usize, f64)>]) -> Range<f64> {
    let values = pieces.iter().flatten().map(|point| point.1);
    let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    if least > most {
        return 0.0..1.0;
    }
    let room = if most > least { 0.05 * (most - least) } else { least.abs().max(1.0) * 0.05 };
    least - room..most + room
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]
mod tests {
    use super::*;

    #[test]
    fn short_lines_are_whole_and_break_where_there_is_no_value() {
        let found = envelope([1.0, 2.0, f64::NAN, 3.0].into_iter());
        assert_eq!(found, [vec![(0, 1.0), (1, 2.0)], vec![(3, 3.0)]]);
    }

    #[test]
    fn long_lines_keep_their_spikes() {
        let mut values = vec![0.0; 100_000];
        values[54_321] = 9.0;
        values[77_777] = -9.0;
        let found = envelope(values.into_iter()).concat();
        assert!(found.len() <= 2 * POINTS);
        assert!(found.contains(&(54_321, 9.0)) && found.contains(&(77_777, -9.0)));
    }

    #[test]
    fn a_picture_shows_each_channel_the_score_the_label_and_the_alert() {
        let traces = Traces {
            lines: vec![2, 3, 4, 5],
            channels: vec![
                ("flow & <ebb>".to_owned(), vec![1.0, 2.0, 1.5, f32::NAN]),
                ("level".to_owned(), vec![f32::NAN; 4]),
            ],
        };
        let picture = Picture {
            title: "pump.csv",
            traces: &traces,
            scores: &[0.0, 0.1, 0.9, 0.2],
            alerts: &[false, false, true, false],
            labels: &[1..3],
        };
        let svg = picture.svg().unwrap();
        for part in ["pump.csv", "flow &amp; &lt;ebb&gt;", "level", "score"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        let bands = |colour: &str| svg.matches(&format!("fill=\"{colour}\"")).count();
        // In every panel, the one of the score included.
        assert_eq!((bands("#D62728"), bands("#FF7F0E")), (3, 3), "{svg}");
        let without = Picture { alerts: &[false; 4], labels: &[], ..picture }.svg().unwrap();
        assert!(!without.contains("#D62728") && !without.contains("#FF7F0E"));
    }
}
