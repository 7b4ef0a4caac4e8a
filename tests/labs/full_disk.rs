//! A node whose disk is full: what cannot be written down is not done, says so, and can be done again when there is room.

use crate::lab::{Host, Lab};

const SLOTS: [u8; 2] = [0, 1];

/// From now on the journal of attachments has no room: both of its files are the kernel's full device.
pub(crate) fn fill(host: &Host) {
    for slot in SLOTS {
        let file = host.state().join(format!("attachments/state.{slot}"));
        let aside = file.with_extension("aside");
        if file.exists() {
            std::fs::rename(&file, aside).expect("it can be moved");
        }
        std::os::unix::fs::symlink("/dev/full", file).expect("a link can be made");
    }
}

pub(crate) fn make_room(host: &Host) {
    for slot in SLOTS {
        let file = host.state().join(format!("attachments/state.{slot}"));
        std::fs::remove_file(&file).expect("the link can be removed");
        let aside = file.with_extension("aside");
        if aside.exists() {
            std::fs::rename(aside, file).expect("it can be moved back");
        }
    }
}

/// Detaching and hiding fail with their cause, nothing is lost from the book, and the next try with room frees all.
#[test]
fn what_cannot_be_struck_out_stays_and_is_struck_out_later() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        h1.attach("a");
        let b = h1.attach("b");
        h1.ok(&["expose"]);
        fill(&h1);
        for command in [&["detach", "a"][..], &["hide"], &["detach", "a"]] {
            let refused = h1.ctl(command);
            assert_ne!(refused.code, 0, "{command:?}: {refused:?}");
            assert!(refused.err.contains("No space left"), "{refused:?}");
            assert!(refused.err.contains("free space"), "{refused:?}");
        }
        let booked = h1.json(&["ps"]);
        let all = booked["attachments"].as_array().into_iter().flatten();
        let names: Vec<_> = all.map(|one| one["name"].as_str()).collect();
        assert_eq!(names, [Some("a"), Some("b")]);
        assert!(booked["host"]["ip"].is_string(), "{booked}");
        make_room(&h1);
        h1.ok(&["detach", "a"]);
        h1.ok(&["hide"]);
        assert_eq!(h1.ctl(&["detach", "a"]).code, h1.ctl(&["detach", "z"]).code);
        assert_eq!(h1.status()["cluster"]["addresses_used"], 1);
        h1.end("KILL");
        h1.start();
        let again = h1.attach("c");
        again.reaches(&b, 56);
        assert_eq!(h1.status()["cluster"]["addresses_used"], 2);
    });
}
