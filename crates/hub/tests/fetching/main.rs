//! Fetching models, against servers in this process; and once the real default model.

mod default_model;
mod hugging_face;
mod loopback;

/// The one test that leaves this machine, and only when the model is not cached yet: the tests of the real model need it.
#[test]
fn the_real_default_model_is_the_pinned_one() {
    let settings = powertrain_hub::Settings::from_env().unwrap();
    let resolved = powertrain_hub::Hub::new(settings).resolve(&"smollm2".parse().unwrap()).unwrap();
    assert_eq!(loopback::sha256(&std::fs::read(resolved.path).unwrap()), powertrain_hub::SMOLLM2.member_sha256);
}
