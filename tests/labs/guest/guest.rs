//! What runs in the images of the labs: one static program that does nothing until it is killed.

fn main() {
    loop {
        std::thread::park();
    }
}
