//! How a core begins: from its saved state, or with an identity that it makes now.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::*;

impl Core {
    /// A node from its saved state, or a new one that makes its identity now. `seed` comes from the kernel's random
    /// source and is used once.
    ///
    /// # Errors
    /// When the state was written by a later version.
    pub fn new(
        config: Config,
        saved: Option<&[u8]>,
        seed: [u8; 32],
        now: Now,
    ) -> Result<Self, Malformed> {
        let mut rng = StdRng::from_seed(seed);
        let saved = saved.map(saved::decode).transpose()?;
        let keys = Arc::new(match &saved {
            Some(saved) => NodeKeys::from_bytes(&saved.keys),
            None => NodeKeys::generate(&mut rng),
        });
        let last = saved.as_ref().map_or(0, |saved| saved.boot);
        let boot = generation::boot_after(last, &mut rng, now);
        let mut session_seed = [0; 32];
        rng.fill_bytes(&mut session_seed);
        let stamp_floor = saved.as_ref().map_or(0, |saved| saved.stamp);
        let terms = session_config(&config, boot, stamp_floor);
        let sessions = Sessions::new(Arc::clone(&keys), terms, session_seed, now);
        let mut core = Self::alone(config, (keys, sessions), rng, boot, now);
        core.past = Past::new(saved.as_ref(), boot, now.mono);
        if let Some(saved) = saved {
            core.restore(saved);
        }
        if core.has_left() {
            core.rng.fill_bytes(&mut session_seed);
            return Self::new(core.config, None, session_seed, now);
        }
        core.saving.after(Pending::Boot);
        core.settle();
        Ok(core)
    }

    /// Of no cluster, with nothing known.
    fn alone(
        config: Config,
        (keys, sessions): (Arc<NodeKeys>, Sessions),
        mut rng: StdRng,
        boot: u64,
        now: Now,
    ) -> Self {
        let inviting = Inviting::new(&mut rng, now.mono);
        let me = keys.id();
        Self {
            view: Arc::new(View::empty(me, config.name.clone())),
            sessions,
            config,
            keys,
            me,
            rng,
            now,
            boot,
            booted: false,
            version: RecordVersion { boot, counter: 0 },
            membership: None,
            active: false,
            past: Past::default(),
            ipam: Ipam::new(0),
            tokens: Tokens::default(),
            links: BTreeMap::new(),
            records: BTreeMap::new(),
            own: None,
            endpoints: Vec::new(),
            dialled: Dialled::new(),
            flood: Flood::default(),
            ways: Ways::default(),
            reach: Reach::default(),
            echoes: Echoes::default(),
            sheets: Sheets::default(),
            parts: Parts::default(),
            budgets: Budgets::default(),
            joining: None,
            inviting,
            naming: Naming::default(),
            leaving: None,
            rotating: Rotating::default(),
            quarantine: Quarantine::default(),
            removals: Removals::default(),
            removed: BTreeMap::new(),
            inquiries: Inquiries::default(),
            asking: None,
            unmet: BTreeMap::new(),
            giving: Giving::default(),
            saving: Saving::default(),
            tally: Tally::default(),
            stale: true,
            relocked: true,
            out: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    fn restore(&mut self, saved: saved::Saved) {
        self.tokens = saved.tokens;
        let Some(membership) = saved.membership else {
            return;
        };
        self.ipam = Ipam::new(membership.range.size());
        self.dialled = saved.dialled;
        self.restore_removed(&saved.removed, &membership.public);
        for bytes in &saved.records {
            let read = || Record::read(bytes, &membership.public, &self.removals);
            match self.quarantine.read(self.me, bytes, read) {
                None => {}
                // The save that made its removal durable still had the record.
                Some(Ok(record)) if self.removals.contains(record.node()) => {}
                Some(Ok(record)) => {
                    self.records.insert(record.node(), record);
                }
                Some(Err(error)) => warn!(%error, "a saved record is left out"),
            }
        }
        self.membership = Some(membership);
        self.reissue_gifts();
        self.restore_sheets(&saved.sheets);
        self.enter();
        self.ipam.restore(&saved.journal, self.now);
    }

    /// Signs the gifts that nobody acknowledged in this boot: those of the one before are taken no more.
    pub(super) fn reissue_gifts(&mut self) {
        let next = self.saving.next();
        let Some(membership) = &mut self.membership else {
            return;
        };
        let whose = (&membership.public, &self.removals);
        if membership.deeds.reissue(self.boot, next, &self.keys, whose) {
            let receivers = membership.deeds.receivers();
            receivers
                .into_iter()
                .for_each(|peer| self.saving.after(Pending::Gift { peer }));
        }
    }
}

fn session_config(config: &Config, boot: u64, stamp_floor: u64) -> SessionConfig {
    SessionConfig {
        suites: config.suites.clone(),
        preferred: config.preferred,
        lanes: config.lanes,
        boot,
        record: 0,
        stamp_floor,
    }
}
