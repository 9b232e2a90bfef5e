//! Results as JSON; a number that is not finite is `null`.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::sink::{Cause, ModelVersion, Score, SegmentMeta};

/// One message on the topic of embeddings.
#[derive(Serialize)]
pub(super) struct EmbeddingMessage<'a> {
    pipeline: &'a str,
    key: &'a str,
    window_start: i64,
    window_end: i64,
    sequence: u64,
    model_version: u64,
    embedding: &'a [f32],
    topic: &'a str,
    partition: i32,
    first_offset: i64,
    last_offset: i64,
    wander: f32,
}

impl<'a> EmbeddingMessage<'a> {
    pub(super) fn new(
        pipeline: &'a str,
        segment: &'a SegmentMeta,
        model: ModelVersion,
        embedding: &'a [f32],
    ) -> Self {
        Self {
            pipeline,
            key: &segment.key,
            window_start: segment.window_start,
            window_end: segment.window_end,
            sequence: segment.sequence,
            model_version: model.steps,
            embedding,
            topic: &segment.lane.topic,
            partition: segment.lane.partition,
            first_offset: segment.first_offset,
            last_offset: segment.last_offset,
            wander: model.wander,
        }
    }
}

/// One message on the topic of anomalies.
#[derive(Serialize)]
pub(super) struct AnomalyMessage<'a> {
    pipeline: &'a str,
    key: &'a str,
    window_start: i64,
    window_end: i64,
    sequence: u64,
    score: f64,
    p_value: f64,
    surprise: f32,
    distance: f32,
    residual: f32,
    alert: bool,
    alert_id: Option<&'a str>,
    causes: Causes<'a>,
    missing: &'a [Arc<str>],
    model_version: u64,
    warm: bool,
    change_point: bool,
}

impl<'a> AnomalyMessage<'a> {
    pub(super) fn new(
        pipeline: &'a str,
        segment: &'a SegmentMeta,
        model: ModelVersion,
        score: &'a Score,
    ) -> Self {
        Self {
            pipeline,
            key: &segment.key,
            window_start: segment.window_start,
            window_end: segment.window_end,
            sequence: segment.sequence,
            score: score.score,
            p_value: score.p_value,
            surprise: score.surprise,
            distance: score.distance,
            residual: score.residual,
            alert: score.alert,
            alert_id: score.alert_id.as_deref(),
            causes: Causes(&score.causes),
            missing: &score.missing,
            model_version: model.steps,
            warm: score.warm,
            change_point: score.turn,
        }
    }
}

/// Shares of channels, by name.
struct Causes<'a>(&'a [Cause]);

#[derive(Serialize)]
struct CauseMessage<'a> {
    channel: &'a str,
    share: f32,
}

impl Serialize for Causes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let causes = self.0.iter();
        serializer.collect_seq(
            causes.map(|cause| CauseMessage { channel: &cause.channel, share: cause.share }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MODEL, score, segment};
    use super::*;

    fn json(message: &impl Serialize) -> String {
        serde_json::to_string(message).unwrap()
    }

    #[test]
    fn an_embedding_has_its_fields_in_the_documented_order() {
        let segment = segment();
        let message = EmbeddingMessage::new("plant", &segment, MODEL, &[0.6, -0.8]);
        assert_eq!(
            json(&message),
            concat!(
                r#"{"pipeline":"plant","key":"pump \"7\"","window_start":1700000000000000,"#,
                r#""window_end":1700000063000000,"sequence":11,"model_version":5,"#,
                r#""embedding":[0.6,-0.8],"topic":"plant.sensors","partition":3,"#,
                r#""first_offset":40,"last_offset":103,"wander":0.25}"#
            )
        );
    }

    #[test]
    fn an_anomaly_names_its_causes_and_has_its_fields_in_the_documented_order() {
        let (segment, score) = (segment(), score());
        let message = AnomalyMessage::new("plant", &segment, MODEL, &score);
        assert_eq!(
            json(&message),
            concat!(
                r#"{"pipeline":"plant","key":"pump \"7\"","window_start":1700000000000000,"#,
                r#""window_end":1700000063000000,"sequence":11,"score":0.75,"p_value":0.001,"#,
                r#""surprise":2.5,"distance":0.125,"residual":6.0,"alert":true,"#,
                r#""alert_id":"pump-7/11","causes":[{"channel":"vibration","share":0.75},"#,
                r#"{"channel":"temperature","share":0.25}],"missing":["speed"],"model_version":5,"warm":true,"change_point":true}"#
            )
        );
    }

    #[test]
    fn numbers_that_are_not_finite_and_absent_alerts_are_null() {
        let segment = segment();
        let calm = Score {
            surprise: f32::NAN,
            distance: f32::INFINITY,
            p_value: f64::NAN,
            alert: false,
            alert_id: None,
            causes: Vec::new(),
            missing: Vec::new(),
            ..score()
        };
        let anomaly = json(&AnomalyMessage::new("plant", &segment, MODEL, &calm));
        assert!(anomaly.contains(r#""p_value":null,"surprise":null,"distance":null"#));
        assert!(anomaly.contains(r#""alert":false,"alert_id":null,"causes":[]"#));

        let embedding = json(&EmbeddingMessage::new("plant", &segment, MODEL, &[f32::NAN, 1.0]));
        assert!(embedding.contains(r#""embedding":[null,1.0]"#));
    }
}
