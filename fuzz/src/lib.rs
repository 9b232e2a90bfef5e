//! What the targets share: bytes become messages, and what a decoder owes to each of them.

use std::collections::BTreeSet;

use contrastream::config::{Layout, Records};
use contrastream::decode::{Decoded, Decoder, FIRST_CHANNEL_COLUMN, OFFSET_COLUMN, records_schema};
use contrastream::source::{Lane, Messages};

/// ASCII's record separator stands between two messages of an input.
const BETWEEN_MESSAGES: u8 = 0x1e;
const FIRST_OFFSET: i64 = 100;

/// The settings that the first byte of an input chooses; the rest of it.
pub fn settings(data: &[u8]) -> Option<(Records, u8, &[u8])> {
    let (&choice, rest) = data.split_first()?;
    let records = Records {
        layout: if choice & 1 == 0 { Layout::Wide } else { Layout::Long },
        key: (choice & 2 == 0).then(|| "key".to_owned()),
        time: Some("time".to_owned()),
        channels: vec!["a".to_owned(), "b".to_owned()],
        ..Records::default()
    };
    Some((records, choice, rest))
}

/// The messages of an input. Every other one has a key, itself.
pub fn messages(data: &[u8]) -> Vec<(Option<&[u8]>, &[u8])> {
    let payloads = data.split(|byte| *byte == BETWEEN_MESSAGES).enumerate();
    payloads.map(|(index, payload)| ((index % 2 == 0).then_some(payload), payload)).collect()
}

/// Decodes the messages together and one by one.
///
/// # Panics
/// If a message is neither a record nor a dead letter nor skipped, or is two of them; or if its
/// neighbours decide what it is.
pub fn decode(decoder: &mut Decoder, records: &Records, sent: &[(Option<&[u8]>, &[u8])]) {
    let lane = Lane::new("fuzz", 0);
    let mut together = Messages::default();
    for (offset, (key, payload)) in (FIRST_OFFSET..).zip(sent) {
        together.push(offset, None, *key, payload, Vec::new());
    }
    let decoded = decoder.decode(&lane, &together).expect("nothing is out of reach");
    assert_eq!(decoded.records.schema(), records_schema(&records.channels));
    let offsets = offsets(&decoded);
    assert!(offsets.is_sorted_by(|one, next| one < next));
    assert!(decoded.dead_letters.is_sorted_by(|one, next| one.offset < next.offset));
    for letter in &decoded.dead_letters {
        let (key, payload) = sent[(letter.offset - FIRST_OFFSET) as usize];
        assert_eq!((letter.key.as_deref(), letter.payload.as_slice()), (key, payload));
        assert!(!letter.reason.is_empty());
    }
    let refused: BTreeSet<i64> = decoded.dead_letters.iter().map(|letter| letter.offset).collect();
    assert!(offsets.iter().all(|offset| !refused.contains(offset)));
    let accounted = offsets.len() + refused.len() + decoded.skipped as usize;
    match records.layout {
        Layout::Wide => assert_eq!(accounted, sent.len()),
        // Rows of one key and time become one record.
        Layout::Long | Layout::Log => assert!(accounted <= sent.len()),
    }

    let (mut kept, mut letters, mut skipped) = (0, Vec::new(), 0);
    for (offset, (key, payload)) in (FIRST_OFFSET..).zip(sent) {
        let mut alone = Messages::default();
        alone.push(offset, None, *key, payload, Vec::new());
        let decoded = decoder.decode(&lane, &alone).expect("nothing is out of reach");
        let found =
            decoded.records.num_rows() + decoded.dead_letters.len() + decoded.skipped as usize;
        assert_eq!(found, 1, "message {offset}");
        kept += decoded.records.num_rows();
        letters.extend(decoded.dead_letters);
        skipped += decoded.skipped;
    }
    assert_eq!((decoded.skipped, &decoded.dead_letters), (skipped, &letters));
    assert!(offsets.len() <= kept && (offsets.is_empty() == (kept == 0)));
}

fn offsets(decoded: &Decoded) -> Vec<i64> {
    assert!(decoded.records.num_columns() > FIRST_CHANNEL_COLUMN);
    let column = decoded.records.column(OFFSET_COLUMN).to_data();
    column.buffer::<i64>(0)[..column.len()].to_vec()
}
