//! The document of the node API is generated, and what is checked in is what is generated.

use std::path::Path;

use serde_json::Value;

/// Where the document is kept for readers.
const KEPT: &str = "deploy/openapi.json";

#[test]
fn the_kept_document_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(KEPT);
    let kept = std::fs::read_to_string(&path).expect("the document is there");
    assert!(
        kept == weave::api::document(),
        "the API has changed; write the document anew: weavectl openapi > {KEPT}"
    );
}

#[test]
fn every_answer_has_a_type_and_every_change_can_be_refused() {
    let document: Value = serde_json::from_str(&weave::api::document()).expect("it is JSON");
    let paths = document["paths"].as_object().expect("it has paths");
    let mut operations = 0;
    for (path, methods) in paths {
        assert!(path.starts_with("/v1/"), "{path}");
        for (method, operation) in methods.as_object().expect("a path has methods") {
            operations += 1;
            let what = format!("{method} {path}");
            let success = &operation["responses"]["200"]["content"];
            if success["application/vnd.tcpdump.pcap"].is_object() {
                // What comes is no JSON; its form is another document's.
                continue;
            }
            let schema = |status: &str| {
                let content = &operation["responses"][status]["content"];
                content["application/json"]["schema"]["$ref"]
                    .as_str()
                    .map(str::to_owned)
            };
            let answer = schema("200").unwrap_or_else(|| panic!("{what} answers without a type"));
            let name = answer.rsplit('/').next().expect("a reference has parts");
            assert!(
                document["components"]["schemas"][name].is_object(),
                "{what}: {answer}"
            );
            if method != "get" {
                let refusal = schema("default");
                assert_eq!(
                    refusal.as_deref(),
                    Some("#/components/schemas/Refusal"),
                    "{what}"
                );
            }
        }
    }
    assert_eq!(
        operations, 39,
        "init, join, leave; tokens: make, list, revoke; admins: make and list; the secret: show and change; targets: list, connect, forget; remove; ipam and its check; attach, detach, list; \
         cni del, check and gc; expose, hide; networks: make, list, remove; services: make, list, remove; status, peers, connections, topology, page login; ping, test, trace, capture"
    );
}
