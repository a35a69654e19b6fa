//! metrics.jsonl as a table: .parquet and .csv, one column for each key.
//!
//! A line holds what its update logged, so most cells of some columns are empty: null in parquet, nothing between two commas
//! in CSV. Keys that only hold whole numbers are whole numbers in parquet, all others are doubles.

use anyhow::{Context, Result, bail};
use experiments::run_dir::parse_log;
use parquet::basic::{Compression, Repetition, Type as Physical};
use parquet::data_type::{DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};
use std::sync::Arc;

/// The table of a log.
#[derive(Debug, PartialEq)]
pub struct Metrics {
    /// Names, in the order in which they first appear.
    columns: Vec<String>,
    /// A cell for each column.
    rows: Vec<Vec<Option<Number>>>,
}

impl Metrics {
    /// The table of the text of metrics.jsonl, `None` before anything was logged. A last line that was cut short, as a killed
    /// run leaves it, is left out.
    ///
    /// # Errors
    /// When another line is no JSON object with an `update`.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let lines = parse_log(text)?;
        if let Some(i) = lines.iter().position(|line| !line.get("update").is_some_and(Value::is_u64)) {
            bail!("line {} has no `update`", i + 1);
        }
        let mut columns: Vec<String> = Vec::new();
        for (key, value) in lines.iter().flatten() {
            if value.is_number() && !columns.contains(key) {
                columns.push(key.clone());
            }
        }
        if columns.is_empty() {
            return Ok(None);
        }
        // The JSON objects are sorted by key; what everything is plotted against comes first.
        columns.sort_by_key(|c| (c != "update", c != "epoch", c != "images_seen", c != "seconds"));
        let cell = |line: &Map<String, Value>, column: &String| line.get(column)?.as_number().cloned();
        let rows = lines.iter().map(|line| columns.iter().map(|c| cell(line, c)).collect()).collect();
        Ok(Some(Self { columns, rows }))
    }

    /// As CSV.
    ///
    /// # Errors
    /// Never: it is written to memory.
    pub fn csv(&self) -> Result<Vec<u8>> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record(&self.columns)?;
        for row in &self.rows {
            csv.write_record(row.iter().map(|v| v.as_ref().map_or_else(String::new, Number::to_string)))?;
        }
        Ok(csv.into_inner()?)
    }

    /// As parquet.
    ///
    /// # Errors
    /// When there are two columns of one name.
    pub fn parquet(&self) -> Result<Vec<u8>> {
        let column = |i: usize| self.rows.iter().map(move |row| row[i].as_ref());
        let whole: Vec<bool> =
            (0..self.columns.len()).map(|i| column(i).flatten().all(Number::is_i64)).collect();
        let fields = self.columns.iter().zip(&whole).map(|(name, &whole)| {
            let physical = if whole { Physical::INT64 } else { Physical::DOUBLE };
            let field = Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
            Ok(Arc::new(field.build()?))
        });
        let schema =
            Type::group_type_builder("metrics").with_fields(fields.collect::<Result<_>>()?).build()?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut file = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
        let mut group = file.next_row_group()?;
        for (i, &whole) in whole.iter().enumerate() {
            // Which cells are there; the values of those follow without gaps.
            let levels: Vec<i16> = column(i).map(|v| i16::from(v.is_some())).collect();
            let mut writer = group.next_column()?.context("parquet has fewer columns than its schema")?;
            if whole {
                let values: Vec<i64> = column(i).flatten().filter_map(Number::as_i64).collect();
                writer.typed::<Int64Type>().write_batch(&values, Some(&levels), None)?;
            } else {
                let values: Vec<f64> = column(i).flatten().filter_map(Number::as_f64).collect();
                writer.typed::<DoubleType>().write_batch(&values, Some(&levels), None)?;
            }
            writer.close()?;
        }
        group.close()?;
        Ok(file.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};

    const LOG: &str = "{\"update\":1,\"epoch\":0.5,\"train_bits_per_dim\":4}\n\
                       {\"update\":1,\"epoch\":0.5,\"validation_bits_per_dim\":4.25}\n";

    #[test]
    fn each_key_is_a_column_and_what_was_not_logged_is_empty() {
        let csv = Metrics::parse(LOG).unwrap().unwrap().csv().unwrap();
        assert_eq!(
            String::from_utf8(csv).unwrap(),
            "update,epoch,train_bits_per_dim,validation_bits_per_dim\n1,0.5,4,\n1,0.5,,4.25\n"
        );
    }

    #[test]
    fn parquet_reads_back_with_its_types_and_gaps() {
        let bytes = Metrics::parse(LOG).unwrap().unwrap().parquet().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.parquet");
        std::fs::write(&path, bytes).unwrap();
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let rows: Vec<String> = reader.get_row_iter(None).unwrap().map(|r| r.unwrap().to_string()).collect();
        assert_eq!(
            rows,
            [
                "{update: 1, epoch: 0.5, train_bits_per_dim: 4, validation_bits_per_dim: null}",
                "{update: 1, epoch: 0.5, train_bits_per_dim: null, validation_bits_per_dim: 4.25}"
            ]
        );
    }

    #[test]
    fn only_a_last_line_may_be_cut_short() {
        let cut = &LOG[..LOG.len() - 5];
        assert_eq!(Metrics::parse(cut).unwrap().unwrap().rows.len(), 1);
        let damaged = format!("{{\"update\":\n{LOG}");
        assert!(format!("{:#}", Metrics::parse(&damaged).unwrap_err()).contains("line 1"));
        assert!(Metrics::parse("").unwrap().is_none());
        assert!(Metrics::parse("{\"epoch\":1}\n").unwrap_err().to_string().contains("`update`"));
    }
}
