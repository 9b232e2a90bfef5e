//! Whether bytes are a record of a schema, before memory is spent on them.
//!
//! `arrow-avro` appends to its columns as it reads, so that a record which breaks off spoils the
//! batch, and it takes a block of items at its word: a handful of bytes may announce two thousand
//! million nulls. It is therefore shown only what was walked through here, which costs no memory
//! and says which field is to blame.

use rustc_hash::FxHashMap;
use serde_json::Value;

/// Deepest nesting of a schema, and with it of a value.
const MAX_DEPTH: usize = 64;
/// Most types that a schema may consist of, each counted wherever it is used: `arrow-avro` makes a
/// column for each.
const MOST_TYPES: u64 = 1 << 16;
/// Values that the arrays and maps of a small message may hold.
const FEW_VALUES: u64 = 1 << 16;
/// Values for each byte of a larger one.
const VALUES_PER_BYTE: u64 = 8;
/// Most values that the arrays and maps of a message may hold.
const MOST_VALUES: u64 = 1 << 25;

/// What the bytes of a schema's records look like.
#[derive(Debug)]
pub(super) struct Shape {
    /// Nodes refer to each other by position, as named types may be used again.
    nodes: Vec<Node>,
    root: usize,
    /// Per node: its values, items of arrays and maps left out. What is null in a column takes as
    /// much room as what is not.
    values: Vec<u64>,
}

#[derive(Debug)]
enum Node {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    /// Number of symbols.
    Enum(u64),
    Array(usize),
    Map(usize),
    Union(Vec<usize>),
    Record(Vec<(String, usize)>),
}

impl Shape {
    /// The shape of an Avro schema, a record, in JSON.
    ///
    /// # Errors
    /// What is wrong with the schema, in words.
    pub fn new(schema: &str) -> Result<Self, String> {
        let schema = serde_json::from_str(schema).map_err(|error| error.to_string())?;
        let mut parser = Parser { nodes: Vec::new(), named: FxHashMap::default() };
        let root = parser.node(&schema, "", 0)?;
        let nodes = parser.nodes;
        if !matches!(nodes[root], Node::Record(_)) {
            return Err("expected the schema of a record, found another one".to_owned());
        }
        let values = measure(&nodes)?.into_iter().map(|measure| measure.values).collect();
        Ok(Self { nodes, root, values })
    }

    /// Name and node of each field of the record.
    pub fn fields(&self) -> impl Iterator<Item = (&str, usize)> {
        let fields = match &self.nodes[self.root] {
            Node::Record(fields) => fields.as_slice(),
            _ => &[],
        };
        fields.iter().map(|(name, node)| (name.as_str(), *node))
    }

    /// What is behind the value of a node with which `bytes` begin, in a record of `length` bytes;
    /// `None` where they do not.
    pub fn skip<'a>(&'a self, node: usize, bytes: &'a [u8], length: usize) -> Option<&'a [u8]> {
        let mut walk = Walk { shape: self, left: bytes, budget: budget(length), path: Vec::new() };
        walk.value(node).ok().map(|()| walk.left)
    }

    /// Walks through `datum`, all of which must be one record; returns how many values it holds.
    ///
    /// # Errors
    /// Where it ceases to be one, in words.
    pub fn check(&self, datum: &[u8]) -> Result<u64, String> {
        let budget = budget(datum.len());
        let mut walk = Walk { shape: self, left: datum, budget, path: Vec::new() };
        match walk.value(self.root) {
            Err(reason) if walk.path.is_empty() => Err(reason),
            Err(reason) => {
                walk.path.reverse();
                Err(format!("field \"{}\": {reason}", walk.path.join(".")))
            }
            Ok(()) if walk.left.is_empty() => Ok(self.values[self.root] + (budget - walk.budget)),
            Ok(()) => {
                Err(format!("expected the record's end, found {} bytes more", walk.left.len()))
            }
        }
    }
}

/// Values that the arrays and maps of a record of `length` bytes may hold.
fn budget(length: usize) -> u64 {
    FEW_VALUES.max(VALUES_PER_BYTE * length as u64).min(MOST_VALUES)
}

/// How large a type is.
#[derive(Clone, Copy)]
struct Measure {
    values: u64,
    types: u64,
    depth: usize,
}

/// The measures of all nodes.
fn measure(nodes: &[Node]) -> Result<Vec<Measure>, String> {
    let mut known = vec![None; nodes.len()];
    let mut measures = Vec::with_capacity(nodes.len());
    for node in 0..nodes.len() {
        measures.push(measure_of(nodes, node, &mut known, 0)?);
    }
    Ok(measures)
}

fn measure_of(
    nodes: &[Node],
    node: usize,
    known: &mut [Option<Measure>],
    above: usize,
) -> Result<Measure, String> {
    if let Some(measure) = known[node] {
        return Ok(measure);
    }
    // A type that contains itself ends here, too.
    if above > MAX_DEPTH {
        return Err(too_deep());
    }
    let mut whole = Measure { values: 0, types: 1, depth: 1 };
    let mut add = |part: usize, is_item: bool| {
        let part = measure_of(nodes, part, known, above + 1)?;
        whole.values += if is_item { 0 } else { part.values };
        whole.types += part.types;
        whole.depth = whole.depth.max(part.depth + 1);
        if whole.depth > MAX_DEPTH {
            return Err(too_deep());
        }
        if whole.types > MOST_TYPES {
            return Err(format!("expected a schema of at most {MOST_TYPES} types, found more"));
        }
        Ok(())
    };
    match &nodes[node] {
        Node::Array(item) | Node::Map(item) => add(*item, true)?,
        Node::Union(branches) => branches.iter().try_for_each(|branch| add(*branch, false))?,
        Node::Record(fields) => fields.iter().try_for_each(|(_, field)| add(*field, false))?,
        _ => {}
    }
    // Something is kept even of what is empty.
    whole.values = whole.values.max(1);
    known[node] = Some(whole);
    Ok(whole)
}

fn too_deep() -> String {
    format!(
        "expected a schema at most {MAX_DEPTH} levels deep, found a deeper one, or a type that \
         contains itself"
    )
}

struct Parser {
    nodes: Vec<Node>,
    /// By full name.
    named: FxHashMap<String, usize>,
}

impl Parser {
    fn node(&mut self, schema: &Value, namespace: &str, depth: usize) -> Result<usize, String> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        match schema {
            Value::String(name) => self.by_name(name, namespace),
            Value::Array(branches) => {
                let branches = branches.iter().map(|b| self.node(b, namespace, depth + 1));
                let branches = branches.collect::<Result<_, _>>()?;
                Ok(self.add(Node::Union(branches)))
            }
            Value::Object(object) => match object.get("type") {
                Some(Value::String(name)) => self.complex(name, object, namespace, depth),
                Some(nested) => self.node(nested, namespace, depth + 1),
                None => Err("expected a schema, found an object without \"type\"".to_owned()),
            },
            other => Err(format!("expected a schema, found {other}")),
        }
    }

    fn by_name(&mut self, name: &str, namespace: &str) -> Result<usize, String> {
        let primitive = match name {
            "null" => Node::Null,
            "boolean" => Node::Boolean,
            "int" => Node::Int,
            "long" => Node::Long,
            "float" => Node::Float,
            "double" => Node::Double,
            "bytes" => Node::Bytes,
            "string" => Node::String,
            _ => {
                let known = self.named.get(&full_name(name, namespace));
                let known = known.or_else(|| self.named.get(name));
                return known.copied().ok_or_else(|| format!("unknown type \"{name}\""));
            }
        };
        Ok(self.add(primitive))
    }

    fn complex(
        &mut self,
        kind: &str,
        object: &serde_json::Map<String, Value>,
        namespace: &str,
        depth: usize,
    ) -> Result<usize, String> {
        let get = |key: &str| {
            object.get(key).ok_or_else(|| format!("expected \"{key}\" in a schema of {kind}"))
        };
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        match kind {
            "array" => {
                let item = self.node(get("items")?, namespace, depth + 1)?;
                Ok(self.add(Node::Array(item)))
            }
            "map" => {
                let value = self.node(get("values")?, namespace, depth + 1)?;
                Ok(self.add(Node::Map(value)))
            }
            "record" | "error" | "enum" | "fixed" => {
                let name = text("name").ok_or_else(|| format!("expected a name of a {kind}"))?;
                let own = text("namespace").unwrap_or(namespace);
                let full = full_name(name, own);
                let inner = full.rsplit_once('.').map_or("", |(inner, _)| inner).to_owned();
                // A record may be used within itself: it has its place before its fields do.
                let place = self.add(Node::Null);
                self.named.insert(full, place);
                self.nodes[place] = match kind {
                    "enum" => {
                        let symbols = get("symbols")?.as_array().map_or(0, Vec::len);
                        Node::Enum(symbols as u64)
                    }
                    "fixed" => {
                        let size = get("size")?.as_u64().and_then(|size| size.try_into().ok());
                        Node::Fixed(size.ok_or("expected the size of a fixed")?)
                    }
                    _ => self.record(get("fields")?, &inner, depth)?,
                };
                Ok(place)
            }
            name => self.by_name(name, namespace),
        }
    }

    fn record(&mut self, fields: &Value, namespace: &str, depth: usize) -> Result<Node, String> {
        let fields = fields.as_array().ok_or("expected a list of the fields of a record")?;
        let fields = fields.iter().map(|field| {
            let name =
                field.get("name").and_then(Value::as_str).ok_or("expected a field's name")?;
            let schema = field.get("type").ok_or("expected a field's type")?;
            Ok((name.to_owned(), self.node(schema, namespace, depth + 1)?))
        });
        Ok(Node::Record(fields.collect::<Result<_, String>>()?))
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if namespace.is_empty() || name.contains('.') {
        name.to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

/// A walk through the bytes of a record.
struct Walk<'a> {
    shape: &'a Shape,
    left: &'a [u8],
    /// Values that arrays and maps may still hold.
    budget: u64,
    /// Fields around what is wrong, the innermost first; none as long as nothing is.
    path: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    fn value(&mut self, node: usize) -> Result<(), String> {
        let shape = self.shape;
        match &shape.nodes[node] {
            Node::Null => Ok(()),
            Node::Boolean => match self.bytes(1)?[0] {
                0 | 1 => Ok(()),
                other => Err(format!("expected a boolean, found the byte {other}")),
            },
            Node::Int => {
                let value = self.long()?;
                let fits = i32::try_from(value).map(|_| ());
                fits.map_err(|_| format!("expected an int, found {value}"))
            }
            Node::Long => self.long().map(|_| ()),
            Node::Float => self.bytes(4).map(|_| ()),
            Node::Double => self.bytes(8).map(|_| ()),
            Node::Bytes => self.prefixed().map(|_| ()),
            Node::String => self.text(),
            Node::Fixed(size) => self.bytes(*size).map(|_| ()),
            Node::Enum(symbols) => {
                let symbol = self.long()?;
                let known = u64::try_from(symbol).is_ok_and(|symbol| symbol < *symbols);
                known.then_some(()).ok_or_else(|| {
                    format!("expected one of {symbols} symbols, found number {symbol}")
                })
            }
            Node::Array(item) => self.blocks(*item, |_| Ok(())),
            Node::Map(value) => self.blocks(*value, Self::text),
            Node::Union(branches) => {
                let branch = self.long()?;
                let known = usize::try_from(branch).ok().and_then(|branch| branches.get(branch));
                let Some(known) = known else {
                    let count = branches.len();
                    return Err(format!("expected one of {count} branches, found number {branch}"));
                };
                self.value(*known)
            }
            Node::Record(fields) => {
                for (name, field) in fields {
                    if let Err(reason) = self.value(*field) {
                        self.path.push(name);
                        return Err(reason);
                    }
                }
                Ok(())
            }
        }
    }

    /// Items in blocks, each begun by what `head` reads.
    fn blocks(
        &mut self,
        item: usize,
        head: impl Fn(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let values = self.shape.values[item];
        loop {
            let count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                let size = self.long()?;
                let fits = usize::try_from(size).is_ok_and(|size| size <= self.left.len());
                if !fits {
                    return Err(format!("expected a block of {size} bytes, {}", self.found()));
                }
            }
            let count = count.unsigned_abs();
            self.budget = count
                .checked_mul(values)
                .and_then(|values| self.budget.checked_sub(values))
                .ok_or_else(|| format!("expected fewer items, found a block of {count}"))?;
            for _ in 0..count {
                head(self)?;
                self.value(item)?;
            }
        }
    }

    #[inline]
    fn text(&mut self) -> Result<(), String> {
        let text = self.prefixed()?;
        std::str::from_utf8(text)
            .map(|_| ())
            .map_err(|_| "expected UTF-8, found other bytes".to_owned())
    }

    /// Bytes behind their length.
    fn prefixed(&mut self) -> Result<&'a [u8], String> {
        let length = self.long()?;
        let length =
            usize::try_from(length).map_err(|_| format!("expected a length, found {length}"))?;
        self.bytes(length)
    }

    #[inline]
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], String> {
        let Some((bytes, left)) = self.left.split_at_checked(length) else {
            return Err(format!("expected {length} bytes, {}", self.found()));
        };
        self.left = left;
        Ok(bytes)
    }

    /// A zigzag number of variable length.
    #[inline]
    fn long(&mut self) -> Result<i64, String> {
        // Most numbers are short: lengths, branches.
        if let [byte @ 0..0x80, left @ ..] = self.left {
            self.left = left;
            return Ok(i64::from(byte >> 1) ^ -i64::from(byte & 1));
        }
        let mut number = 0_u64;
        for (at, byte) in self.left.iter().enumerate() {
            // The tenth byte has room for one bit.
            if at == 9 && *byte > 1 {
                return Err("expected a number, found one of more than 64 bits".to_owned());
            }
            number |= u64::from(byte & 0x7F) << (7 * at);
            if byte & 0x80 == 0 {
                self.left = &self.left[at + 1..];
                return Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
            }
        }
        Err(format!("expected a number, {}", self.found()))
    }

    fn found(&self) -> String {
        match self.left.len() {
            0 => "found the message's end".to_owned(),
            left => format!("found {left} up to the message's end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r#"{"type":"record","name":"R","namespace":"n","fields":[
        {"name":"id","type":"string"},
        {"name":"body","type":{"type":"record","name":"Body","fields":[
            {"name":"temp","type":["null","double"]},
            {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["A","B"]}}]}},
        {"name":"list","type":{"type":"array","items":"n.Kind"}},
        {"name":"nothing","type":{"type":"array","items":"null"}},
        {"name":"tags","type":{"type":"map","values":"int"}}]}"#;

    /// id "m", temp 1.0, kind B, list [A], nothing [], tags {"k": 1}.
    fn datum() -> Vec<u8> {
        let mut bytes = vec![2, b'm', 2];
        bytes.extend(1.0_f64.to_le_bytes());
        bytes.extend([2, 2, 0, 0, 0, 2, 2, b'k', 2, 0]);
        bytes
    }

    fn reason(datum: &[u8]) -> String {
        Shape::new(SCHEMA).unwrap().check(datum).unwrap_err()
    }

    #[test]
    fn a_whole_record_passes_and_its_values_are_counted() {
        // Five fields, of which the union counts twice and the body has two; two items.
        assert_eq!(Shape::new(SCHEMA).unwrap().check(&datum()), Ok(7 + 2));
    }

    #[test]
    fn a_record_cut_off_anywhere_or_followed_by_anything_is_refused() {
        let whole = datum();
        for end in 0..whole.len() {
            assert!(reason(&whole[..end]).contains("the message's end"), "{end}");
        }
        let longer = [&whole[..], &[0, 0]].concat();
        assert_eq!(reason(&longer), "expected the record's end, found 2 bytes more");
    }

    #[test]
    fn a_reason_names_the_field() {
        let mut datum = datum();
        datum[2] = 8;
        assert_eq!(
            reason(&datum),
            "field \"body.temp\": expected one of 2 branches, found number 4"
        );
        let mut datum = self::datum();
        datum[11] = 5;
        assert_eq!(
            reason(&datum),
            "field \"body.kind\": expected one of 2 symbols, found number -3"
        );
        let mut datum = self::datum();
        datum[1] = 0xFF;
        assert_eq!(reason(&datum), "field \"id\": expected UTF-8, found other bytes");
    }

    #[test]
    fn lengths_and_counts_beyond_the_message_cost_nothing() {
        let long = [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
        assert_eq!(
            reason(&long),
            format!("field \"id\": expected {} bytes, found the message's end", i64::MAX)
        );
        // As many nulls as there are numbers.
        let mut datum = datum();
        datum.splice(15..16, long);
        assert!(reason(&datum).starts_with("field \"nothing\": expected fewer items"));
        // A number without an end.
        assert!(reason(&[0x80; 12]).contains("more than 64 bits"));
    }

    #[test]
    fn blocks_may_tell_their_size() {
        let mut datum = datum();
        datum.splice(12..13, [1, 2]);
        assert!(Shape::new(SCHEMA).unwrap().check(&datum).is_ok(), "{}", reason(&datum));
        datum[13] = 0x7E;
        assert!(reason(&datum).starts_with("field \"list\": expected a block of 63 bytes"));
    }

    #[test]
    fn schemas_that_are_none_and_types_within_themselves_are_refused() {
        for (schema, reason) in [
            ("\"string\"", "expected the schema of a record"),
            ("{", "EOF"),
            ("{}", "without \"type\""),
            (r#"{"type":"record","name":"R","fields":[{"name":"a","type":"S"}]}"#, "\"S\""),
            (
                r#"{"type":"record","name":"R","fields":[{"name":"a","type":"R"}]}"#,
                "contains itself",
            ),
            (
                r#"{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"array","items":"R"}}]}"#,
                "contains itself",
            ),
        ] {
            let found = Shape::new(schema).unwrap_err();
            assert!(found.contains(reason), "{found}");
        }
    }

    #[test]
    fn a_schema_that_doubles_at_each_level_is_refused() {
        let mut schema = r#"{"type":"record","name":"R0","fields":[]}"#.to_owned();
        for level in 1..30 {
            let within = level - 1;
            schema = format!(
                r#"{{"type":"record","name":"R{level}","fields":[{{"name":"a","type":{schema}}},
                    {{"name":"b","type":{{"type":"array","items":"R{within}"}}}}]}}"#
            );
        }
        let found = Shape::new(&schema).unwrap_err();
        assert!(found.contains("at most 65536 types"), "{found}");
    }
}
