//! `tessera estimate` on files, directories and NBD exports.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;

use common::{TestPool, random_file, requires, scratch, tessera, text, tool};

#[test]
fn an_estimate_is_what_the_pool_then_says() {
    let files = scratch();
    let image = files.path().join("image");
    random_file(&image, 6 << 20, 3);
    let mut data = fs::read(&image).unwrap();
    let half = data[..2 << 20].to_vec();
    data.extend(&half);
    data.extend(b"some words again and again, ".repeat(40_000));
    data.resize(data.len().next_multiple_of(4096), 0);
    fs::write(&image, &data).unwrap();
    let path = text(&image);
    let answer = tessera(["estimate", &path, "--chunk-size", "4K", "--json"]).json();
    assert_eq!(answer["images"], 1);
    assert_eq!(answer["total_bytes"], data.len());
    let of_file = answer["estimates"][0].clone();
    assert_eq!(of_file["chunk_bytes"], 4096);
    assert_eq!(of_file["sampled_one_in"], 1);
    assert!(of_file["dedup_ratio"].as_f64().unwrap() > 1.1, "{answer}");

    let directory = text(files.path());
    let all = tessera(["estimate", &directory, "--chunk-size", "4K", "--json"]).json();
    assert_eq!(all["estimates"][0], of_file);
    let twice = tessera(["estimate", &path, &path, "--chunk-size", "4K", "--json"]).json();
    assert_eq!(twice["images"], 2);
    let twice = &twice["estimates"][0];
    assert_eq!(twice["unique_bytes"], of_file["unique_bytes"]);

    if !requires(&["nbdcopy"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let served = pool.serve();
    // One connection, so that chunks come in the file's order.
    let uri = served.uri("vm");
    let copy = ["--flush", "--connections=1", "--requests=1", &path, &uri];
    tool("nbdcopy", &copy).ok();
    let status = pool.status();
    for key in ["dedup_ratio", "compression_ratio"] {
        let (predicted, real) = (
            of_file[key].as_f64().unwrap(),
            status[key].as_f64().unwrap(),
        );
        assert!(
            (predicted / real - 1.0).abs() < 0.02,
            "{key}: {predicted} {real}"
        );
    }
    assert_eq!(of_file["logical_bytes"], status["logical_bytes"]);
    let exported = tessera(["estimate", &uri, "--chunk-size", "4K", "--json"]).json();
    assert_eq!(exported["estimates"][0], of_file);
    served.stop();
}

#[test]
fn what_cannot_be_estimated_is_refused_in_a_sentence() {
    for (arguments, why) in [
        (&["estimate", "/nowhere"][..], "/nowhere cannot be read"),
        (&["estimate", "/dev/null"], "neither a file"),
        (&["estimate", "nbds://host/x"], "TLS"),
        (
            &["estimate", "/etc", "--chunk-size", "5K"],
            "chunk size of 5K",
        ),
        (&["estimate", "/etc", "--memory", "1M"], "too little memory"),
    ] {
        let sentence = tessera(arguments).refused();
        assert!(sentence.contains(why), "{arguments:?}: {sentence}");
    }
}

#[test]
fn the_table_tells_of_every_chunk_size_and_the_best() {
    let files = scratch();
    let image = files.path().join("image");
    random_file(&image, 2 << 20, 3);
    let shown = tessera(["estimate", &text(&image), "--chunk-size", "64K,4K"]).ok();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 5, "{shown}");
    assert!(lines[0].starts_with("Read 2M in 1 image"), "{shown}");
    assert!(lines[2].trim().starts_with("4K") && lines[3].trim().starts_with("64K"));
    assert!(
        lines[4].starts_with("The best of these chunk sizes: "),
        "{shown}"
    );
}
